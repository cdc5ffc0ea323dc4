"""How messages get here: by requests for so many of them, which the server answers as there are any.

A request is over when all it asked for has come, or its time is. Cancelling one means to hear no more: what the server is about
to send at that very moment reaches nobody. It comes again, and would be an attempt if it had waited for long, so this is done
when nothing stirs.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Task, TimerHandle
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from oncue.core.errors import ConnectionLostError, QueueNotFoundError, TransportError
from oncue.transports.nats.codec import left_of, status
from oncue.transports.nats.core import Connection, RefusedError, tell
from oncue.transports.nats.faults import CONSUMER_NOT_FOUND, fault
from oncue.transports.nats.place import EXPIRES, Place
from oncue.transports.nats.queues import Queues

_BEAT = 5.0
"""Seconds between signs that a request still waits."""
_LOST = 2.5
"""So many of them may be missed."""
_STILL = 0.03
"""Seconds without a message after which nothing is about to come."""
_PAUSE = 0.1
"""Seconds before the next request, when one was refused."""
_DELETED = "consumer deleted"
_BEATING = 100
_ENDED = frozenset({404, 408})

Arrived = Callable[[bytes, bytes, bytes], object]
"""Is given the subject to acknowledge to, headers and body."""


class Intake:
    """Messages of one consumer. `ended` is told why it stopped, and may ask for more at once."""

    def __init__(
        self,
        queues: Queues,
        place: Callable[[], Place],
        consumer: Callable[[], str],
        arrived: Arrived,
        ended: Callable[[TransportError], object],
    ) -> None:
        self._queues = queues
        self._link = queues.jetstream.link
        self._place = place
        self._consumer = consumer
        self._arrived = arrived
        self._ended = ended
        self.loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._sid, self._inbox, self._number = 0, b"", 0
        self.asked = 0  # messages that may still come
        self.plenty = False  # whether the last request brought all that it asked for
        self.on_room: Callable[[], object] = lambda: None  # fewer may come than before
        self.on_forgotten: Callable[[], object] = lambda: None  # the server does not know what it has delivered
        self._wanted = 0  # so many more, when there is a connection
        self._task: Task[None] | None = None
        self._watch: TimerHandle | None = None
        self._stirred = 0.0
        self._doubtful = False  # whether the consumer may not be there any more
        self._stopped = False

    def want(self, count: int, *, waiting: bool = True) -> None:
        """Ask for so many more; with `waiting` also for those that are not there yet."""
        if self._stopped:
            return
        if self._task is not None or self._connection is None or self._connection.closed.done():
            self._wanted = max(self._wanted, count)
            self._start(self._open())
        elif self._doubtful:  # older servers do not tell whoever asks a consumer that is not there
            self._wanted = max(self._wanted, count)
            self._start(self._look("it was away"))
        else:
            self._pull(count, waiting=waiting)

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        self._wanted = 0
        if self.asked:
            self._start(self._cancel())

    async def stop(self) -> None:
        """Return when nothing more can come."""
        self._stopped = True
        self._wanted = 0
        await self._rest()
        if self._connection is not None:
            self._start(self._cancel())
            await self._rest()
        if self._watch is not None:
            self._watch.cancel()

    # Asking

    def _start(self, doing: Coroutine[Any, Any, None]) -> None:
        """Do it, unless something else is done already."""
        if self._task is not None:
            doing.close()
            return
        self._task = self.loop.create_task(doing)
        self._task.add_done_callback(self._done)

    async def _rest(self) -> None:
        while self._task is not None:
            await asyncio.wait([self._task])

    def _done(self, task: Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._over(fault(error, self._link.address.shown))
        elif self._wanted and not self._stopped:
            count, self._wanted = self._wanted, 0
            self.want(count)

    async def _open(self) -> None:
        """Have a connection, and hear what comes."""
        if self._connection is not None and not self._connection.closed.done():
            return
        self._connection = None
        connection = await self._link.connection()
        self._connection = connection
        self._sid, self._inbox = connection.subscribe(self._heard)
        self.asked = 0
        connection.closed.add_done_callback(lambda _: self._gone(connection))

    def _pull(self, count: int, *, waiting: bool) -> None:
        connection, place = self._connection, self._place()
        assert connection is not None
        self._number += 1
        request: dict[str, object] = {"batch": count, "no_wait": True}
        if waiting:
            request = {"batch": count, "expires": int(EXPIRES * 1e9), "idle_heartbeat": int(_BEAT * 1e9)}
        subject = f"{self._link.address.api}.CONSUMER.MSG.NEXT.{place.stream}.{self._consumer()}"
        body = msgspec.json.encode(request)
        connection.send(b"PUB %b %b.%d %d\r\n%b\r\n" % (subject.encode(), self._inbox, self._number, len(body), body))
        self.asked += count
        self._stirred = self.loop.time()
        if self._watch is None:
            self._watch = self.loop.call_later(_LOST * _BEAT, self._on_watch)

    async def _cancel(self) -> None:
        """Hear no more of what was asked for up to now."""
        connection = self._connection
        if connection is None or connection.closed.done():
            return
        while self.asked:
            left = self._stirred + _STILL - self.loop.time()
            if left <= 0:
                break
            await asyncio.sleep(left)
        future: Future[None] = self.loop.create_future()
        if connection.closed.done():
            return
        connection.closed.add_done_callback(lambda _: tell(future))
        connection.unsubscribe(self._sid, partial(tell, future))
        await future
        self.asked = 0
        if not self._stopped and not connection.closed.done():
            self._sid, self._inbox = connection.subscribe(self._heard)
            self.loop.call_soon(self._ask_again)

    # What comes

    def _heard(self, _subject: bytes, reply: bytes, header: bytes, body: bytes) -> None:
        self._stirred = self.loop.time()
        if header and not body:
            code, text = status(header)
            if code:
                self._told(code, text, header)
                return
        self.asked = max(0, self.asked - 1)
        self.plenty = not self.asked
        self._arrived(reply, header, body)

    def _told(self, code: int, text: str, header: bytes) -> None:
        if code == _BEATING:
            return
        self.plenty = False
        left = left_of(header)
        if left is not None:
            self.asked = max(0, self.asked - left)
            self._ask_again()
        elif code in _ENDED:
            self.asked = 0
            self._ask_again()
        else:  # the consumer is gone, or led by another server now, or nobody listens
            self.asked = 0
            if _DELETED in text.lower():
                self.on_forgotten()
            self._start(self._look(text or str(code)))

    def _ask_again(self) -> None:
        if not self._stopped:
            self.on_room()

    async def _look(self, why: str) -> None:
        """See what is left, and make the consumer anew if that is all that is missing."""
        await asyncio.sleep(_PAUSE)
        place = self._place()
        try:
            await self._queues.jetstream.consumer(place.stream, self._consumer())
        except RefusedError as error:
            if error.refusal.err_code == CONSUMER_NOT_FOUND:
                await self._queues.find(place.spec.name)
            else:
                await self._queues.check_there(place.spec.name)
                raise ConnectionLostError(f"{self._link.address.shown}: {why}") from error
        self._doubtful = False
        self._wanted = max(self._wanted, 1)

    def _on_watch(self) -> None:
        self._watch = None
        if self._stopped or not self.asked:
            return
        left = self._stirred + _LOST * _BEAT - self.loop.time()
        if left > 0:
            self._watch = self.loop.call_later(left, self._on_watch)
        else:  # nobody knows of our request any more
            self.asked = 0
            self._start(self._look("no sign of life from the consumer"))

    def _gone(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._over(fault(connection.closed.result(), self._link.address.shown))

    def _over(self, error: TransportError) -> None:
        self.asked = 0
        self._wanted = 0
        self._doubtful = True
        if not self._stopped:
            if isinstance(error, QueueNotFoundError):
                self._queues.forget()
            self._ended(error)


async def take(queues: Queues, place: Place, consumer: str, most: int) -> list[tuple[bytes, bytes, bytes]]:
    """Up to so many messages that are there now: the subject to acknowledge to, headers and body of each."""
    link = queues.jetstream.link
    connection = await link.connection()
    loop = asyncio.get_running_loop()
    found: list[tuple[bytes, bytes, bytes]] = []
    over: Future[None] = loop.create_future()

    def heard(_subject: bytes, reply: bytes, header: bytes, body: bytes) -> None:
        if header and not body and status(header)[0]:
            if status(header)[0] != _BEATING:
                tell(over)
            return
        found.append((reply, header, body))
        if len(found) == most:
            tell(over)

    sid, inbox = connection.subscribe(heard)
    subject = f"{link.address.api}.CONSUMER.MSG.NEXT.{place.stream}.{consumer}"
    request = msgspec.json.encode({"batch": most, "no_wait": True})
    connection.send(b"PUB %b %b.1 %d\r\n%b\r\n" % (subject.encode(), inbox, len(request), request))
    connection.closed.add_done_callback(lambda _: tell(over))
    try:
        async with asyncio.timeout(link.address.timeout):
            await over
    except TimeoutError as error:
        raise fault(error, link.address.shown) from error
    finally:
        connection.unsubscribe(sid, lambda: None)
    if connection.closed.done():
        raise fault(connection.closed.result(), link.address.shown)
    return found
