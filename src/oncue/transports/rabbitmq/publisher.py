"""Sends messages over a connection of their own, and tells of each whether the server has it."""

from __future__ import annotations

import asyncio
import re
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Callable, Sequence

from oncue.core.errors import (
    ConnectionLostError,
    IncompatibleStoreError,
    MessageTooLargeError,
    PartialSendError,
    QueueNotFoundError,
    StorageFullError,
    TransportClosedError,
    TransportError,
    again,
)
from oncue.transports.rabbitmq.amqp import Channel, ChannelClosed, ClosedError, Connection, MalformedError, Returned
from oncue.transports.rabbitmq.codec import Parcel
from oncue.transports.rabbitmq.faults import fault
from oncue.transports.rabbitmq.link import Link

Done = Callable[[TransportError | None], object]
"""Is told what came of a call, once, in the event loop."""

_MOST, _LARGEST = 4096, 16 * 1024 * 1024
"""Messages, and bytes, that are under way at a time, if not one message is larger."""
_DENIED = re.compile(r"ACCESS_REFUSED - access to exchange '([^']*)'")
_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")


class Posting:
    """Messages that one call sends, and what came of them so far."""

    __slots__ = ("done", "failures", "missing", "over", "parcels", "since", "size")

    def __init__(self, parcels: Sequence[Parcel], done: Done, now: float) -> None:
        self.parcels = parcels
        self.missing = len(parcels)
        self.size = sum([len(parcel.body) for parcel in parcels])
        self.failures: dict[int, TransportError] = {}
        self.since = now
        self.over = False
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
    """All that is asked for in one turn of the loop is written at once. Confirms come in any order."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._shown = link.address.shown
        self._timeout = link.address.timeout
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._queue: deque[Posting] = deque()
        # What is under way, from the number `_first` on; None for what was heard of.
        self._sent: deque[tuple[Posting, int] | None] = deque()
        self._first = 1
        self._size = 0
        self._flushing = False
        self._look: TimerHandle | None = None
        self._heard = 0.0
        self._live = 0
        self._idle: Future[None] | None = None
        self.on_lost: Callable[[], object] = lambda: None

    def post(self, parcels: Sequence[Parcel], done: Done) -> None:
        """Send, and tell `done` in a later turn of the loop; nothing is told twice."""
        self._live += 1
        self._queue.append(Posting(parcels, done, self._loop.time()))
        self._flush_soon()

    async def send(self, parcels: Sequence[Parcel]) -> None:
        """Return when all are stored. Raises what `Transport.send` raises; when cancelled, all may be stored as well."""
        future: Future[None] = self._loop.create_future()

        def done(error: TransportError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.post(parcels, done)
        await future

    async def finish(self) -> None:
        """Return when all who asked were told."""
        while self._live:
            if self._idle is None or self._idle.done():
                self._idle = self._loop.create_future()
            await self._idle

    async def close(self) -> None:
        """Send nothing more; comes after `finish`."""
        if self._look is not None:
            self._look.cancel()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        self._fail_queued(TransportClosedError())

    # Writing

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self._queue:
            return
        if self._look is None:
            self._heard = self._loop.time()
            self._look = self._loop.call_later(self._timeout / 4, self._on_look)
        channel, connection = self._channel, self._connection
        if channel is None or connection is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
            return
        if connection.blocked is not None:
            return
        now = self._loop.time()
        while self._queue and len(self._sent) < _MOST and (self._size < _LARGEST or not self._sent):
            posting = self._queue.popleft()
            posting.since = now
            self._size += posting.size
            try:
                self._publish(channel, posting)
            except ClosedError as error:  # which those under way are told of by the end of the channel
                self._size -= posting.size
                self._end(posting, self._lost(error))
                return

    def _publish(self, channel: Channel, posting: Posting) -> None:
        for place, (exchange, key, properties, body) in enumerate(posting.parcels):
            try:
                channel.publish(exchange, key, properties, body)
            except MalformedError as error:
                posting.failures[place] = IncompatibleStoreError(f"{self._shown}: {error}")
                self._account(posting)
            else:
                self._sent.append((posting, place))

    async def _open(self) -> None:
        try:
            self._connection = connection = await self._link.connection()
            async with asyncio.timeout(self._timeout):
                channel = await connection.channel()
                await channel.confirm()
        except (TransportError, ClosedError, TimeoutError) as error:
            self._fail_queued(fault(error, self._shown))
            return
        finally:
            self._opening = None
        self._first = 1
        channel.on_confirm = self._confirmed
        channel.on_return = self._returned
        connection.on_blocked = self._on_blocked
        self._channel = channel
        channel.closed.add_done_callback(self._ended)
        self._flush_soon()

    # What comes

    def _confirmed(self, tag: int, multiple: bool, acknowledged: bool) -> None:
        self._heard = self._loop.time()
        sent = self._sent
        index = tag - self._first
        if multiple:
            for _ in range(min(index + 1, len(sent))):
                entry = sent.popleft()
                self._first += 1
                if entry is not None:
                    self._settle(entry, acknowledged)
        elif 0 <= index < len(sent):
            entry, sent[index] = sent[index], None
            if entry is not None:
                self._settle(entry, acknowledged)
            while sent and sent[0] is None:
                sent.popleft()
                self._first += 1
        if self._queue:
            self._flush_soon()

    def _settle(self, entry: tuple[Posting, int], acknowledged: bool) -> None:
        posting, place = entry
        if not acknowledged and place not in posting.failures:
            queue = posting.parcels[place].key
            posting.failures[place] = StorageFullError(
                f"{self._shown}: queue {queue!r} takes nothing more at the moment"
            )
        self._account(posting)

    def _account(self, posting: Posting) -> None:
        posting.missing -= 1
        if not posting.missing:
            self._size -= posting.size
            self._end(posting, posting.result())

    def _returned(self, returned: Returned) -> None:
        """No queue took it: of several that are the same, it does not matter which one that was."""
        place = returned.exchange, returned.routing_key
        for entry in self._sent:
            if entry is not None:
                posting, index = entry
                exchange, key, properties, body = posting.parcels[index]
                same = (exchange, key) == place and properties == returned.properties and body == returned.body
                if same and index not in posting.failures:
                    posting.failures[index] = QueueNotFoundError(key)
                    return

    def _ended(self, closed: Future[ChannelClosed]) -> None:
        """The channel is over: nobody knows what became of what is under way."""
        reason = closed.result()
        self._channel = None
        sent, self._sent = self._sent, deque()
        self._size = 0
        self.on_lost()
        for entry in sent:
            if entry is not None:
                posting, place = entry
                self._end(posting, self._blame(posting.parcels[place], reason))
        if self._queue:
            self._flush_soon()

    def _blame(self, parcel: Parcel, reason: ClosedError) -> TransportError:
        """What the end of the channel means for a message: the one that is at fault is not to be tried again."""
        limit, denied = _TOO_LARGE.search(reason.text), _DENIED.search(reason.text)
        if limit is not None and len(parcel.body) > int(limit[1]):
            return MessageTooLargeError(parcel.key, len(parcel.body), int(limit[1]))
        if denied is not None and denied[1] == (parcel.exchange or "amq.default"):
            return fault(reason, self._shown)
        return self._lost(reason)

    def _lost(self, error: ClosedError) -> TransportError:
        problem = fault(error, self._shown)
        return problem if isinstance(problem, ConnectionLostError) else ConnectionLostError(str(problem))

    def _on_blocked(self, reason: str | None) -> None:
        if reason is None and self._queue:
            self._flush_soon()

    # Watching

    def _on_look(self) -> None:
        """Leave nobody waiting for a server that says nothing."""
        self._look = None
        if not self._live:
            return
        self._look = self._loop.call_later(self._timeout / 4, self._on_look)
        before = self._loop.time() - self._timeout
        blocked = self._connection.blocked if self._connection is not None else None
        why = f"it takes no messages: {blocked}" if blocked else f"no answer within {self._timeout:g} s"
        for entry in self._sent:
            if entry is not None:
                if entry[0].since > before:
                    break
                self._end(entry[0], ConnectionLostError(f"{self._shown}: {why}"))
        if self._heard > before:
            return
        while self._queue and self._queue[0].since <= before:
            kind = StorageFullError if blocked else ConnectionLostError
            self._end(self._queue.popleft(), kind(f"{self._shown}: {why}"))

    def _fail_queued(self, error: TransportError) -> None:
        queue, self._queue = self._queue, deque()
        for posting in queue:
            self._end(posting, again(error))

    def _end(self, posting: Posting, error: TransportError | None) -> None:
        if posting.over:
            return
        posting.over = True
        self._live -= 1
        posting.done(error)
        if not self._live and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
