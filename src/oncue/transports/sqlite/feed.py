"""What passes between event loops and the writer's thread: requests one way, leases and results the other."""

from __future__ import annotations

import itertools
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from oncue.core.errors import TransportError
from oncue.core.message import Message
from oncue.transports.sqlite.store import Holding, Queue, Row, Store

if TYPE_CHECKING:
    from oncue.transports.sqlite.writer import Writer


class Kind(IntEnum):
    SEND = 0
    ACK = 1
    CHANGE = 2  # nack or release
    EXTEND = 3
    RETURN = 4  # a lease that nobody has seen goes back
    WANT = 5  # somebody receives
    CALL = 6  # anything else, by itself


class Request:
    """One thing asked of the writer. Its future is set in its port's event loop, after the commit."""

    __slots__ = ("call", "delay", "error", "feed", "future", "kind", "lease", "port", "result", "rows", "uncounted")

    def __init__(
        self,
        kind: Kind,
        port: Port,
        future: Future[Any] | None = None,
        *,
        lease: Grant | None = None,
        rows: Sequence[Row] = (),
        delay: int = 0,
        uncounted: int = 0,
        feed: Feed | None = None,
        call: Callable[[Store], Any] | None = None,
    ) -> None:
        self.kind = kind
        self.port = port
        self.future = future
        self.lease = lease
        self.rows = rows
        self.delay = delay
        self.uncounted = uncounted
        self.feed = feed
        self.call = call
        self.result: Any = None
        self.error: TransportError | None = None

    @property
    def size(self) -> int:
        """Bytes to be stored."""
        return sum(len(row.body) for row in self.rows)


class Stage(IntEnum):
    HELD = 0
    SETTLING = 1
    OVER = 2


class Grant:
    """A lease as the writer knows it. Times are the steady clock's."""

    __slots__ = ("attempt", "feed", "fresh_until", "message", "queue", "seq", "stage", "suspect", "token", "until")

    def __init__(
        self, feed: Feed, message: Message, attempt: int, *, seq: int, token: int, until: int, suspect: bool
    ) -> None:
        self.feed = feed
        self.queue: Queue = feed.queue
        self.message = message
        self.attempt = attempt
        self.seq = seq
        self.token = token
        self.until = until
        self.fresh_until = until - feed.queue.lease // 2
        self.suspect = suspect
        self.stage = Stage.HELD

    @property
    def holding(self) -> Holding:
        return Holding(self.seq, self.token)


class Feed:
    """One subscription as the writer sees it.

    The event loop's side sets `prefetch` and `active`, and takes from `buffer`; the rest is the writer's. `active` says that
    somebody has asked for messages since the last time that they lay here for too long.
    """

    def __init__(
        self, port: Port, queue: Queue, prefetch: int, on_change: Callable[[TransportError | None], None]
    ) -> None:
        self.port = port
        self.queue = queue
        self.prefetch = prefetch
        self.on_change = on_change
        self.active = False
        self.starved = False
        self.waiting = 0
        self.buffer: deque[Grant] = deque()
        self.granted: dict[int, Grant] = {}
        self.suspects = 0
        self.load = 0
        self.hungry = False
        self.scheduled: int | None = None
        self.leased: int | None = None

    def grant(self, lease: Grant) -> None:
        former = self.granted.get(lease.seq)
        if former is not None:
            self.forget(former)
        self.granted[lease.seq] = lease
        self.suspects += lease.suspect
        self.load += len(lease.message.body)

    @property
    def has_room(self) -> bool:
        """Whether messages should be claimed for it if there are any."""
        enough = self.starved and (self.buffer or not self.waiting)
        return self.active and len(self.granted) < self.prefetch and not enough

    def forget(self, lease: Grant) -> None:
        """The lease is over; may be said twice."""
        lease.stage = Stage.OVER
        if self.granted.get(lease.seq) is lease:
            del self.granted[lease.seq]
            self.suspects -= lease.suspect
            self.load -= len(lease.message.body)
            self.hungry = True

    def lapse(self, steady: int) -> None:
        """Forget leases that ran out."""
        for lease in [lease for lease in self.granted.values() if lease.until <= steady]:
            self.forget(lease)

    def first_end(self) -> int | None:
        """About when the first lease runs out."""
        return min((lease.until for lease in itertools.islice(self.granted.values(), 8)), default=None)


class Port:
    """One event loop's access to a writer: gathers what is asked in one turn of the loop, and hands out the results."""

    def __init__(self, writer: Writer, loop: AbstractEventLoop) -> None:
        self.writer = writer
        self.loop = loop
        self._asked: list[Request] = []

    def submit(self, request: Request) -> None:
        """Ask for something; what is asked in the same turn of the loop goes together."""
        self._asked.append(request)
        if len(self._asked) == 1:
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        if self._asked:
            asked, self._asked = self._asked, []
            self.writer.submit(asked)

    async def call(self, call: Callable[[Store], Any]) -> Any:
        """Let the writer do something by itself, after all that was asked before."""
        future: Future[Any] = self.loop.create_future()
        self.submit(Request(Kind.CALL, self, future, call=call))
        return await future

    def deliver(self, requests: Sequence[Request], feeds: Sequence[tuple[Feed, TransportError | None]]) -> bool:
        """From the writer's thread: set results and wake receivers, in the loop; False if the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(_settle, requests, feeds)
        except RuntimeError:
            return False
        return True


def _settle(requests: Sequence[Request], feeds: Sequence[tuple[Feed, TransportError | None]]) -> None:
    for request in requests:
        future = request.future
        if future is not None and not future.done():
            if request.error is None:
                future.set_result(request.result)
            else:
                future.set_exception(request.error)
    for feed, error in feeds:
        feed.on_change(error)
