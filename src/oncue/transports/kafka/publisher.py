"""Sends records. The client's producer is idempotent and tries for ever; here each send has an end.

What goes to one partition waits in a line and is taken from it as much at a time as fits into a batch, so that those who send at the
same moment share one. What is not stored in time is given up together with the producer that has it: a new one begins anew, with an
id of its own, so that neither what is given up nor what a server refused leaves a gap in the numbers that servers count by.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka import errors as theirs

from oncue.core.errors import ConnectionLostError, TransportClosedError, TransportError
from oncue.transports.kafka import private
from oncue.transports.kafka.address import Address
from oncue.transports.kafka.codec import MAX_RECORD, Parcel
from oncue.transports.kafka.faults import TROUBLE, fault

_BATCH = 2**18
_AT_ONCE = 0.5
_TOO_LARGE = (theirs.RecordTooLargeError, theirs.MessageSizeTooLargeError)


class Letter(NamedTuple):
    """A record to be sent: where to, what, and for which queue."""

    place: TopicPartition
    parcel: Parcel
    queue: str


class Post:
    """Letters that were handed in together. `outcome` gets those that were not stored by their number, with the client's errors or
    ours, once all have been stored or given up. Who waits for it may be cancelled; the letters go on."""

    __slots__ = ("_failures", "_left", "_open", "at", "given_up", "outcome", "until")

    def __init__(self, count: int, outcome: Future[Mapping[int, BaseException]], until: float) -> None:
        self.outcome = outcome
        self.at = int(time.time() * 1000)  # and not when its turn in line comes: by this time they are told apart
        self.until = until
        self.given_up = False
        self._left = count
        self._open = bytearray(b"\1") * count
        self._failures: dict[int, BaseException] = {}

    @property
    def is_over(self) -> bool:
        return not self._left

    def done(self, number: int, error: BaseException | None = None) -> None:
        """This one is stored, or is not."""
        if self._open[number]:
            self._open[number] = 0
            self._left -= 1
            if error is not None:
                self._failures[number] = error
            if not self._left and not self.outcome.done():
                self.outcome.set_result(self._failures)

    def give_up(self, error: BaseException) -> None:
        self.given_up = True
        for number, is_open in enumerate(bytes(self._open)):
            if is_open:
                self.done(number, error)


class _Waiting(NamedTuple):
    """One letter in line; one that is `alone` shares no batch, as a batch was too large that it was in."""

    post: Post
    number: int
    letter: Letter
    alone: bool = False


class Publisher:
    """One producer at a time, which is made when it is needed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._producer: AIOKafkaProducer | None = None
        self._making = asyncio.Lock()
        self._lines: dict[TopicPartition, deque[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._posts: deque[Post] = deque()  # in the order in which their time is over
        self._timer: TimerHandle | None = None
        self._under_way: set[Future[Any]] = set()
        self._closed = False

    async def start(self) -> None:
        try:
            await self._live()
        except TROUBLE as error:
            raise fault(error, self._address.shown) from error

    async def close(self) -> None:
        """Give what is under way its time, and hang up."""
        while any(not post.is_over for post in self._posts):
            await asyncio.wait([*self._tasks, *self._under_way], timeout=self._posts[-1].until - self._loop.time())
            self._on_time()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        async with self._making:
            self._retire(self._producer)
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def forget(self, topic: str) -> None:
        """It is gone."""
        if self._producer is not None:
            private.forget(self._producer, topic)

    def send(self, letters: Sequence[Letter]) -> Future[Mapping[int, BaseException]]:
        """Have them sent, after those to the same places that were handed in before; what becomes of them, as `Post` says."""
        post = Post(len(letters), self._loop.create_future(), self._loop.time() + self._address.timeout)
        self._posts.append(post)
        if self._timer is None:
            self._timer = self._loop.call_at(post.until, self._on_time)
        for number, letter in enumerate(letters):
            self._line_up(letter.place, _Waiting(post, number, letter))
        return post.outcome

    def fault(self, error: BaseException) -> TransportError:
        """What became of a record, as ours."""
        if isinstance(error, theirs.ProducerClosed):
            return TransportClosedError() if self._closed else ConnectionLostError(f"{self._address.shown}: try again")
        return fault(error, self._address.shown)

    # Inside

    def _line_up(self, place: TopicPartition, *waiting: _Waiting) -> None:
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = deque(waiting)
            self._own(asyncio.ensure_future(self._empty(place, line)))
        else:
            line.extend(waiting)

    async def _empty(self, place: TopicPartition, line: deque[_Waiting]) -> None:
        """Hand over what is in line, a batch at a time."""
        try:
            while line:
                taken: list[_Waiting] = []
                producer = self._producer
                try:
                    producer = producer or await self._live()
                    batch = producer.create_batch()
                    taken = _fill(batch, line)
                    if taken:
                        stored = await producer.send_batch(batch, place.topic, partition=place.partition)
                        self._under_way.add(stored)
                        stored.add_done_callback(partial(self._on_stored, producer, place, taken))
                except theirs.ProducerClosed as error:
                    self._retire(producer)
                    if self._closed:
                        _fail([*taken, *line], error)
                        line.clear()
                    else:  # it was given up meanwhile, with nothing of these
                        line.extendleft(reversed(taken))
                except AssertionError as error:  # the topic was made anew, with fewer partitions
                    _fail(taken, theirs.UnknownTopicOrPartitionError(str(error)))
                except TROUBLE as error:
                    if not isinstance(error, theirs.UnknownTopicOrPartitionError):
                        self._retire(producer)  # some faults it never gets over
                    _fail(taken or line, error)
                    if not taken:
                        line.clear()
        finally:
            del self._lines[place]

    def _on_stored(
        self, producer: AIOKafkaProducer, place: TopicPartition, taken: Sequence[_Waiting], stored: Future[Any]
    ) -> None:
        self._under_way.discard(stored)
        error = theirs.ProducerClosed() if stored.cancelled() else stored.exception()
        if error is None:
            for each in taken:
                each.post.done(each.number)
            return
        self._retire(producer)  # the server waits for a number that it will never get
        if isinstance(error, _TOO_LARGE) and len(taken) > 1:
            self._line_up(place, *(each._replace(alone=True) for each in taken))
        else:
            _fail(taken, error)

    def _on_time(self) -> None:
        """Give up what is not stored in time, and the producer that has it."""
        self._timer = None
        late = False
        while self._posts and (self._posts[0].is_over or self._posts[0].until <= self._loop.time()):
            post = self._posts.popleft()
            if not post.is_over:
                post.give_up(ConnectionLostError(f"{self._address.shown}: not stored in time"))
                late = True
        if late:
            self._retire(self._producer, _AT_ONCE)
        if self._posts:
            self._timer = self._loop.call_at(self._posts[0].until, self._on_time)

    async def _live(self) -> AIOKafkaProducer:
        async with self._making:
            if self._closed:
                raise theirs.ProducerClosed
            if self._producer is None:
                self._producer = await self._made()
            return self._producer

    async def _made(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._address.client(),
            enable_idempotence=True,
            acks="all",
            max_batch_size=_BATCH,
            max_request_size=2 * MAX_RECORD,
        )
        try:
            await private.start(producer, self._address.timeout)
        except BaseException:
            await private.stop(producer, _AT_ONCE)
            raise
        return producer

    def _retire(self, producer: AIOKafkaProducer | None, within: float | None = None) -> None:
        """Send no more by it; what it has may be stored for so long, and is given up then."""
        if producer is not None and self._producer is producer:
            self._producer = None
            stopping = private.stop(producer, self._address.timeout if within is None else within)
            self._own(asyncio.ensure_future(stopping))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fill(batch: Any, line: deque[_Waiting]) -> list[_Waiting]:
    """Take as much as fits."""
    taken: list[_Waiting] = []
    while line:
        post, _, (_, parcel, _), alone = line[0]
        if not post.given_up:
            if alone and taken:
                break
            if batch.append(timestamp=post.at, key=parcel.key, value=parcel.body, headers=parcel.headers) is None:
                break
            taken.append(line[0])
        line.popleft()
        if alone and taken:
            break
    return taken


def _fail(waiting: Sequence[_Waiting] | deque[_Waiting], error: BaseException) -> None:
    for each in waiting:
        each.post.done(each.number, error)
