"""Leases and subscriptions as the event loop's side sees them."""

from __future__ import annotations

import logging
from asyncio import CancelledError, Future
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from oncue.core.errors import (
    InvalidValueError,
    LeaseLostError,
    TransportClosedError,
    TransportError,
    again,
)
from oncue.core.message import Send, check_delay
from oncue.transports.checks import check_prefetch, encode_head
from oncue.transports.sqlite.clock import steady
from oncue.transports.sqlite.feed import Feed, Grant, Kind, Request, Stage
from oncue.transports.sqlite.store import Row, Store

if TYPE_CHECKING:
    from oncue.transports.sqlite.transport import SQLiteTransport

MAX_BODY = 512 * 1024 * 1024

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("oncue.transports.sqlite")


class SQLiteLease:
    """A received message. Its methods return after the commit; a cancelled one may still take effect."""

    __slots__ = ("_grant", "_transport", "attempt", "message")

    def __init__(self, transport: SQLiteTransport, grant: Grant) -> None:
        self._transport = transport
        self._grant = grant
        self.message = grant.message
        self.attempt = grant.attempt

    async def ack(self, *sends: Send) -> None:
        rows = rows_of(sends) if sends else ()
        await self._settle(Kind.ACK, rows=rows)

    async def nack(self, *, delay: float = 0.0) -> None:
        await self._settle(Kind.CHANGE, delay=_microseconds(delay))

    async def release(self) -> None:
        await self._settle(Kind.CHANGE, uncounted=1)

    async def extend(self, seconds: float) -> None:
        delay = _microseconds(seconds)
        if delay <= 0:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 seconds")
        self._check_held()
        await self._ask(Kind.EXTEND, (), delay, 0)

    async def _settle(self, kind: Kind, *, rows: Sequence[Row] = (), delay: int = 0, uncounted: int = 0) -> None:
        self._check_held()
        self._grant.stage = Stage.SETTLING
        await self._ask(kind, rows, delay, uncounted)

    async def _ask(self, kind: Kind, rows: Sequence[Row], delay: int, uncounted: int) -> None:
        port = self._transport.port
        future: Future[None] = port.loop.create_future()
        port.submit(Request(kind, port, future, lease=self._grant, rows=rows, delay=delay, uncounted=uncounted))
        await future

    def _check_held(self) -> None:
        self._transport.check_open()
        if self._grant.stage is not Stage.HELD:
            raise LeaseLostError(self._grant.queue.spec.name, self.message.id)


class SQLiteSubscription:
    """Messages of one queue, leased ahead by the writer as room comes free."""

    def __init__(self, transport: SQLiteTransport, name: str, prefetch: int) -> None:
        self._transport = transport
        self._name = name
        self._prefetch = check_prefetch(prefetch)
        self._waiters: deque[Future[None]] = deque()
        self._feed: Feed | None = None
        self._left = False

    async def join(self) -> None:
        """Begin; raise `QueueNotFoundError`. If cancelled, `leave` undoes what was done of it."""
        port = self._transport.port

        def join(store: Store) -> Feed:
            store.refresh_queues()
            feed = Feed(port, store.queue(self._name), self._prefetch, self._on_change)
            port.writer.add(feed)
            self._feed = feed
            return feed

        await port.call(join)

    async def receive(self) -> SQLiteLease:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self._transport.check_open()
            feed = self._feed
            if self._left or feed is None:
                raise TransportClosedError
            grant = self._next(feed)
            if not feed.active:
                self._want(feed)
            if grant is not None:
                return SQLiteLease(self._transport, grant)
            await self._wait(feed)

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        feed = self._feed
        if feed is not None and not self._left:
            feed.prefetch = prefetch
            self._want(feed)

    async def leave(self) -> None:
        """Release what is not settled; may be called twice."""
        if self._left:
            return
        self._left = True
        self._on_change(TransportClosedError())
        port = self._transport.port

        def leave(store: Store) -> None:
            if self._feed is not None:
                port.writer.remove(store, self._feed)

        try:
            await port.call(leave)
        except TransportError as error:
            if self._feed is not None:
                port.writer.discard(self._feed)
            _log.warning("leases of queue %r could not be given back and will run out: %s", self._name, error)

    def _next(self, feed: Feed) -> Grant | None:
        now = steady()
        while True:
            try:
                grant = feed.buffer.popleft()
            except IndexError:
                return None
            if grant.fresh_until >= now:
                return grant
            feed.port.submit(Request(Kind.RETURN, feed.port, lease=grant))

    def _want(self, feed: Feed) -> None:
        feed.active = True
        feed.port.submit(Request(Kind.WANT, feed.port, feed=feed))

    async def _wait(self, feed: Feed) -> None:
        waiter: Future[None] = feed.port.loop.create_future()
        self._waiters.append(waiter)
        feed.waiting += 1
        if feed.starved:
            self._want(feed)
        try:
            await waiter
        except CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake()  # it was this one's turn; somebody else's now
            with suppress(ValueError):
                self._waiters.remove(waiter)
            raise
        finally:
            feed.waiting -= 1

    def _on_change(self, error: TransportError | None) -> None:
        """In the event loop: there are new leases, or there was an error."""
        if error is None:
            self._wake()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(again(error))

    def _wake(self) -> None:
        feed = self._feed
        count = len(feed.buffer) if feed is not None else 0
        while self._waiters and count > 0:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1


def rows_of(sends: Sequence[Send]) -> list[Row]:
    """The messages as they are stored; raise `InvalidValueError` or `MessageTooLargeError` for what cannot be."""
    return [_row(send) for send in sends]


def _row(send: Send) -> Row:
    message = send.message
    head = encode_head(send, _encode, MAX_BODY).decode()
    return Row(send.queue, _microseconds(send.delay) if send.delay else 0, message.key, head, bytes(message.body))


def _microseconds(seconds: float) -> int:
    return round(check_delay(seconds) * 1_000_000)
