"""Sends messages, and tells of each whether the server has it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from asyncio import Future, Handle, Task
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from oncue.core.errors import (
    ConnectionLostError,
    IncompatibleStoreError,
    MessageTooLargeError,
    PartialSendError,
    TransportClosedError,
    TransportError,
)
from oncue.core.message import Send, check_delay
from oncue.transports.nats.codec import LARGEST, MAX_HEAD, encode, headers, line, names_of, schedule, status
from oncue.transports.nats.codec import due as due_header
from oncue.transports.nats.core import Connection, Refusal, RefusedError, tell
from oncue.transports.nats.faults import BUSY, TOO_LARGE, fault
from oncue.transports.nats.place import Place, stream_name, subject_of
from oncue.transports.nats.queues import Queues

Done = Callable[[TransportError | None], object]
"""Is told what came of a call, once, in the event loop."""

_MOST, _LARGEST = 4096, 16 * 1024 * 1024
"""Messages, and bytes, that are under way at a time, if not one message is larger. Older servers take 10,000 at a time."""
_MAX_PAYLOAD = 1024 * 1024
"""Bytes. What a server takes unless told otherwise."""
_NOBODY = 503
_PAUSE = 0.1
_REMEMBERED = 10_000
"""Sendings of which nobody knows whether they arrived, and whose names are kept for when they are sent once more."""


class Parcel(NamedTuple):
    """One message on its way to a queue."""

    queue: str
    subject: bytes
    header: bytes
    body: bytes


class _Acknowledged(msgspec.Struct):
    """What the server says of a message that it was sent."""

    stream: str = ""
    duplicate: bool = False
    error: Refusal | None = None


_read = msgspec.json.Decoder(_Acknowledged).decode


class Posting:
    """Messages that one call sends, and what came of them so far: so many were written, and so many `known` already."""

    __slots__ = ("begun", "done", "failures", "known", "missing", "parcels", "since")

    def __init__(self, parcels: Sequence[Parcel], done: Done, now: float) -> None:
        self.parcels = parcels
        self.missing = len(parcels)
        self.failures: dict[int, TransportError] = {}
        self.begun = self.known = 0
        self.since = now
        self.done = done

    def result(self) -> TransportError | None:
        """What to say when all messages have been heard of."""
        failures = self.failures
        if not failures:
            return None
        if len(failures) == len(self.parcels):
            return next(iter(failures.values()))
        return PartialSendError(dict(sorted(failures.items())), len(self.parcels))


class Publisher:
    """All that is asked for in one turn of the loop is written at once. Answers come in any order."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self.link = queues.jetstream.link
        self._shown = self.link.address.shown
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Posting] = deque()
        self._flushing: Handle | None = None
        self._opening: Task[None] | None = None
        self._asking: set[Task[None]] = set()
        self._count = self._size = 0  # under way
        self._max_payload = _MAX_PAYLOAD
        self._live = 0
        self._idle: Future[None] | None = None
        self._own, self._last = secrets.token_hex(8).encode(), 0
        self._unsure: OrderedDict[tuple[str, str], tuple[bytes, bytes]] = OrderedDict()

    @property
    def most(self) -> int:
        """Bytes that a body may have; as the server says, once there is a connection."""
        connection = self.link.current
        if connection is not None:
            self._max_payload = int(connection.info.get("max_payload", self._max_payload))
        return max(1, min(self._max_payload - MAX_HEAD, LARGEST))

    async def parcels(self, sends: Sequence[Send], parent: bytes | None = None) -> Sequence[Parcel]:
        """What is to be published for `sends`; for those with the acknowledgement of a message, `parent` names its sending.

        Raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored, and `QueueNotFoundError` for a delay in a
        queue that is not there.
        """
        most = self.most
        for send in sends:
            check_delay(send.delay)
        heads = [encode(send, most) for send in sends]
        if parent is None:
            names = [self._name(send, head) for send, head in zip(sends, heads, strict=True)]
        else:
            names = names_of(parent, sends)
        parcels = []
        for send, head, name in zip(sends, heads, names, strict=True):
            if send.delay:
                place = await self._queues.place(send.queue)
                parcels.append(delayed(place, head, name, bytes(send.message.body), send.delay, line(name)))
            else:
                subject = subject_of(self.link.address, send.queue).encode()
                parcels.append(Parcel(send.queue, subject, headers(head, name), bytes(send.message.body)))
        return parcels

    async def send(self, sends: Sequence[Send]) -> None:
        """Return when all are stored. Raises what `Transport.send` raises; when cancelled, all may be stored as well."""
        parcels = await self.parcels(sends)
        future: Future[None] = self._loop.create_future()

        def done(error: TransportError | None) -> None:
            if error is not None:
                self._remember(sends, parcels, error)
            tell(future, error)

        self.post(parcels, done)
        await future

    def post(self, parcels: Sequence[Parcel], done: Done) -> Posting:
        """Send, and tell `done` in a later turn of the loop; nothing is told twice."""
        self._live += 1
        posting = Posting(parcels, done, self._loop.time())
        self._waiting.append(posting)
        self._flush_soon()
        return posting

    async def finish(self) -> None:
        """Return when all who asked were told."""
        while self._live:
            if self._idle is None or self._idle.done():
                self._idle = self._loop.create_future()
            await self._idle

    async def close(self) -> None:
        """Send nothing more; comes after `finish`."""
        tasks = [*self._asking, *([] if self._opening is None else [self._opening])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_waiting(TransportClosedError())

    # Names

    def _name(self, send: Send, head: bytes) -> bytes:
        """A new name, or the one under which the same message was sent when nobody could tell what became of it."""
        if self._unsure:
            name, digest = self._unsure.pop((send.queue, send.message.id), (b"", b""))
            if name and digest == _digest(head, send):
                return name
        self._last += 1
        return b"%b-%x" % (self._own, self._last)

    def _remember(self, sends: Sequence[Send], parcels: Sequence[Parcel], error: TransportError) -> None:
        failed = error.failed if isinstance(error, PartialSendError) else dict.fromkeys(range(len(sends)), error)
        for index, failure in failed.items():
            if isinstance(failure, ConnectionLostError):
                send, header = sends[index], parcels[index].header
                name, _, rest = header.partition(b"Nats-Msg-Id: ")[2].partition(b"\r\nOncue: ")
                head = rest.partition(b"\r\n")[0]
                self._unsure[send.queue, send.message.id] = (name, _digest(head, send))
        while len(self._unsure) > _REMEMBERED:
            self._unsure.popitem(last=False)

    # Writing

    def _flush_soon(self) -> None:
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if not self._waiting:
            return
        connection = self.link.current
        if connection is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
            return
        now = self._loop.time()
        while self._waiting and self._count < _MOST and (self._size < _LARGEST or not self._count):
            posting = self._waiting[0]
            place = posting.begun
            posting.begun += 1
            if posting.begun == len(posting.parcels):
                self._waiting.popleft()
            posting.since = now
            self._count += 1
            self._size += len(posting.parcels[place].body)
            self._publish(connection, posting, place)

    def _publish(self, connection: Connection, posting: Posting, place: int) -> None:
        _, subject, header, body = posting.parcels[place]
        connection.ask(subject, body, partial(self._heard, posting, place), header)

    async def _open(self) -> None:
        try:
            await self.link.connection()
        except TransportError as error:
            self._fail_waiting(error)
        finally:
            self._opening = None
        self._flush_soon()

    # What comes

    def _heard(self, posting: Posting, place: int, header: bytes, body: bytes, error: Exception | None) -> None:
        if error is not None:
            self._account(posting, place, fault(error, self._shown))
            return
        if header and status(header)[0] == _NOBODY:
            self._try_again(posting, place, "nobody takes messages", nobody=True)
            return
        parcel = posting.parcels[place]
        try:
            said = _read(body)
        except msgspec.MsgspecError as wrong:
            self._account(posting, place, IncompatibleStoreError(f"{self._shown}: {wrong}"))
            return
        if said.error is not None and said.error.err_code in BUSY:
            self._try_again(posting, place, said.error.description)
        elif said.error is not None:
            self._account(posting, place, self._refused(parcel, said.error))
        elif said.stream != stream_name(self.link.address, parcel.queue):
            text = f"{self._shown}: what is for queue {parcel.queue!r} is taken by stream {said.stream!r}"
            self._account(posting, place, IncompatibleStoreError(text))
        else:
            posting.known += said.duplicate
            self._account(posting, place, None)

    def _refused(self, parcel: Parcel, error: Refusal) -> TransportError:
        if error.err_code == TOO_LARGE:
            return MessageTooLargeError(parcel.queue, len(parcel.body), self.most)
        return fault(RefusedError(error), self._shown)

    def _try_again(self, posting: Posting, place: int, why: str, *, nobody: bool = False) -> None:
        task = asyncio.create_task(self._send_again(posting, place, why, nobody=nobody))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _send_again(self, posting: Posting, place: int, why: str, *, nobody: bool) -> None:
        """It was not taken: there is no such queue, or its servers begin, elect who leads them, or have too much to do."""
        problem: TransportError
        try:
            if nobody:
                await self._queues.check_there(posting.parcels[place].queue)
            if posting.since + self.link.address.timeout > self._loop.time():
                await asyncio.sleep(_PAUSE)
                self._publish(await self.link.connection(), posting, place)
                return
            problem = ConnectionLostError(f"{self._shown}: queue {posting.parcels[place].queue!r}: {why}")
        except asyncio.CancelledError:
            self._account(posting, place, TransportClosedError())
            raise
        except TransportError as error:
            problem = error
        self._account(posting, place, problem)

    def _account(self, posting: Posting, place: int, failure: TransportError | None) -> None:
        self._count -= 1
        self._size -= len(posting.parcels[place].body)
        self._note(posting, place, failure)
        if self._waiting:
            self._flush_soon()

    def _note(self, posting: Posting, place: int, failure: TransportError | None) -> None:
        if failure is not None:
            posting.failures[place] = failure
        posting.missing -= 1
        if not posting.missing:
            self._end(posting, posting.result())

    def _fail_waiting(self, error: TransportError) -> None:
        waiting, self._waiting = self._waiting, deque()
        for posting in waiting:
            for place in range(posting.begun, len(posting.parcels)):
                self._note(posting, place, fault(error, self._shown))

    def _end(self, posting: Posting, error: TransportError | None) -> None:
        self._live -= 1
        posting.done(error)
        if not self._live and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)


def delayed(place: Place, head: bytes, name: bytes, body: bytes, delay: float, more: bytes) -> Parcel:
    """What is to be published for a delayed message. Raise `IncompatibleStoreError` where the stream has no subject for it."""
    if not place.delays:
        raise IncompatibleStoreError(
            f"queue {place.spec.name!r}: stream {place.stream!r} does not have the subject "
            f"'{place.subject.decode()}.later.*', which delayed messages need"
        )
    when = (
        schedule(delay, place.skew, place.subject) if place.schedules else due_header(time.time() + place.skew + delay)
    )
    return Parcel(place.spec.name, place.later, headers(head, name, more, when), body)


def _digest(head: bytes, send: Send) -> bytes:
    return hashlib.blake2b(b"%b\0%b\0%r" % (head, bytes(send.message.body), send.delay), digest_size=16).digest()
