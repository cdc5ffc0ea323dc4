"""Leases, and the subscriptions that take them: fetched ahead as there is room, handed out while they are fresh."""

from __future__ import annotations

import logging
import random
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from oncue.core.errors import (
    InvalidValueError,
    LeaseLostError,
    QueueNotFoundError,
    TransportClosedError,
    TransportError,
    again,
)
from oncue.core.message import Message, Send
from oncue.transports.checks import check_prefetch
from oncue.transports.receivers import Receivers
from oncue.transports.redis.codec import decode
from oncue.transports.redis.turn import Claim, Kind, Settle, microseconds, parcels_of

if TYPE_CHECKING:
    from oncue.transports.redis.desk import Desk

_log = logging.getLogger("oncue.transports.redis")

LOAD = 16 * 1024 * 1024
"""Bytes that a subscription fetches ahead of those who wait, about."""
SUSPECT = 2
"""A message whose leases ran out this often may be what ends its consumers."""
_SLOWEST_LOOK = 10.0
"""Seconds after which one who waits looks by himself, should nobody have told him."""
_SECOND_LOOK = (0.1, 0.4)
"""Seconds after which one looks who heard that others were told of messages: they may be dead, and their leases are to be
watched."""


class Stage(IntEnum):
    HELD = 0
    SETTLING = 1
    OVER = 2


class RedisLease:
    """A received message. Its methods return when the server has done it; a cancelled one may still take effect."""

    __slots__ = ("attempt", "fresh_until", "member", "message", "queue", "stage", "subscription", "suspect", "until")

    def __init__(self, subscription: RedisSubscription, message: Message, member: str, until: float) -> None:
        self.subscription = subscription
        self.queue = subscription.name
        self.message = message
        self.member = member
        _, attempt, lapses, _ = member.split(":")
        self.attempt = int(attempt)
        self.suspect = int(lapses) >= SUSPECT
        self.until = until
        self.fresh_until = until - subscription.lease / 2
        self.stage = Stage.HELD

    async def ack(self, *sends: Send) -> None:
        if sends:
            parcels, _ = parcels_of(sends)
            await self._settle(Settle(Kind.HOP, self, self._future(), parcels=parcels))
        else:
            await self._settle(Settle(Kind.ACK, self, self._future()))

    async def nack(self, *, delay: float = 0.0) -> None:
        await self._settle(Settle(Kind.NACK, self, self._future(), argument=microseconds(delay)))

    async def release(self) -> None:
        await self._settle(Settle(Kind.RELEASE, self, self._future()))

    async def extend(self, seconds: float) -> None:
        length = microseconds(seconds)
        if length <= 0:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 seconds")
        self._check_held()
        desk = self.subscription.desk
        settle = Settle(Kind.EXTEND, self, self._future(), argument=length)
        until = desk.loop.time() + seconds
        desk.settle(settle)
        assert settle.future is not None
        await settle.future
        self.until = until

    def give_back(self) -> None:
        """As `release`, for a lease that nobody has seen, and without waiting."""
        self.stage = Stage.SETTLING
        self.subscription.desk.settle(Settle(Kind.RELEASE, self))

    def settled(self, settle: Settle, error: TransportError | None) -> None:
        """What came of it."""
        if settle.kind == Kind.EXTEND:
            if isinstance(error, LeaseLostError):
                self.subscription.forget(self)
        elif error is None or isinstance(error, LeaseLostError) or settle.future is None:
            self.subscription.forget(self)
        elif self.stage is Stage.SETTLING:
            self.stage = Stage.HELD
        future = settle.future
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _future(self) -> Future[None]:
        return self.subscription.desk.loop.create_future()

    async def _settle(self, settle: Settle) -> None:
        self._check_held()
        self.stage = Stage.SETTLING
        self.subscription.desk.settle(settle)
        assert settle.future is not None
        await settle.future

    def _check_held(self) -> None:
        self.subscription.check_open()
        if self.stage is not Stage.HELD:
            raise LeaseLostError(self.queue, self.message.id)


class RedisSubscription:
    """Messages of one queue. It is `active` from the first `receive` until what it fetched ahead lay too long."""

    def __init__(self, desk: Desk, check_open: Callable[[], None], name: str, prefetch: int, lease: float) -> None:
        self.desk = desk
        self.name = name
        self.id = desk.new_name()
        self.channel = f"{desk.prefix}{name}:b".encode()
        self.lease = lease
        self._check_transport = check_open
        self._prefetch = check_prefetch(prefetch)
        self._receivers = Receivers(lambda: len(self._buffer))
        self._buffer: deque[RedisLease] = deque()
        self._granted: dict[RedisLease, None] = {}
        self._load = 0
        self.found = prefetch  # messages, by the last claim, or perhaps by the first
        self._suspects = 0
        self._active = False
        self._waiting_there = False
        self._claimed_at: float | None = None
        self._look: TimerHandle | None = None
        self._lapse: TimerHandle | None = None
        self._tidy: TimerHandle | None = None
        self._left = False
        self._quiet: Future[None] | None = None

    # For those who receive

    async def receive(self) -> RedisLease:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self.check_open()
            lease = self._next()
            self._active = True
            if lease is not None:
                if not self._buffer:
                    self._want()
                return lease
            self._want()
            await self._receivers.wait()

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        if self._left:
            return
        while len(self._granted) > prefetch and self._buffer:
            self._return(self._buffer.pop())
        self._want()

    async def leave(self) -> None:
        """Release what is not settled; may be called twice."""
        if self._left:
            return
        self._left = True
        for handle in (self._look, self._lapse, self._tidy):
            if handle is not None:
                handle.cancel()
        self.fail(TransportClosedError())
        if self._claimed_at is not None:
            self._quiet = self.desk.loop.create_future()
            await self._quiet
        self.desk.leave(self)
        self._buffer.clear()
        releases = []
        for lease in list(self._granted):
            if lease.stage is Stage.HELD:
                future: Future[None] = self.desk.loop.create_future()
                lease.stage = Stage.OVER
                self.desk.settle(Settle(Kind.RELEASE, lease, future))
                releases.append(future)
        problem: TransportError | None = None
        for future in releases:
            try:
                await future
            except LeaseLostError:
                continue
            except TransportError as error:
                problem = error
        if problem is not None:
            _log.warning("leases of queue %r could not be given back and will run out: %s", self.name, problem)

    def check_open(self) -> None:
        """Raise `TransportClosedError` when it may not be used any more."""
        self._check_transport()
        if self._left:
            raise TransportClosedError

    # For the desk

    def claim(self, gone: int, new_token: Callable[[], str]) -> Claim | None:
        """What to ask for, when `gone` of its leases are about to be settled."""
        room = self._prefetch - len(self._granted) + gone
        size = LOAD - self._load
        if size <= 0 and self._receivers and not self._buffer:
            room, size = min(room, 1), 1
        if (
            not self._active
            or self._left
            or self._waiting_there
            or self._claimed_at is not None
            or room <= 0
            or size <= 0
        ):
            return None
        self._claimed_at = self.desk.loop.time()
        return Claim(self, room, size, not self._suspects, new_token())

    def claimed(self, claim: Claim, answer: Sequence[bytes | int] | None) -> None:
        """The answer to a claim."""
        if not claim.most:
            return
        began, self._claimed_at = self._claimed_at, None
        if answer is None:
            self._active = False
            self._drop_all()
            self.fail(QueueNotFoundError(self.name))
            self._calm()
            return
        left, due = answer[0], answer[1]
        assert isinstance(due, int)
        assert began is not None
        for index in range(2, len(answer), 2):
            entry, payload = answer[index], answer[index + 1]
            assert isinstance(entry, bytes)
            assert isinstance(payload, bytes)
            member = f"{entry.decode()}:{claim.token}"
            self._grant(RedisLease(self, decode(payload), member, began + self.lease))
        self.found = len(answer) // 2 - 1
        self._waiting_there = self.found < claim.most and not left
        self._look_in(_SLOWEST_LOOK * random.uniform(0.8, 1.0) if due < 0 else min(due / 1e6 + 0.001, _SLOWEST_LOOK))
        self._receivers.wake()
        self._tidy_later()
        self._want()
        self._calm()

    def failed(self, error: TransportError) -> None:
        """A claim came to nothing."""
        self._claimed_at = None
        self._waiting_there = False
        self._active = False
        self.fail(error)
        self._calm()

    def disconnected(self, error: TransportError) -> None:
        """The server does not know any more that it waits; neither do those here who wait."""
        self._claimed_at = None
        self._waiting_there = False
        if not self._buffer:
            self._active = False
        self.fail(error)
        self._calm()

    def rung(self, first: bool, due: float | None) -> None:
        """There is news in the queue, which this one was told `first` of, or only heard of; `due` says when there will be."""
        if first:
            self._waiting_there = False
            if self._receivers:
                self._want()
            else:  # nobody asks at the moment; the next `receive` looks again
                self._active = False
                self.desk.pass_on(self)
        elif self._waiting_there:
            self._look_in(
                min(random.uniform(*_SECOND_LOOK), _SLOWEST_LOOK if due is None else due + 0.001), sooner=True
            )

    def forget(self, lease: RedisLease) -> None:
        """The lease is over; may be said twice."""
        lease.stage = Stage.OVER
        if lease in self._granted:
            self._drop(lease)
            self._want()

    def fail(self, error: TransportError) -> None:
        """Wake all who wait with `error`."""
        self._receivers.fail(lambda: again(error))

    # Inside

    def _grant(self, lease: RedisLease) -> None:
        self._granted[lease] = None
        self._load += len(lease.message.body)
        self._suspects += lease.suspect
        self._buffer.append(lease)

    def _next(self) -> RedisLease | None:
        now = self.desk.loop.time()
        while self._buffer:
            lease = self._buffer.popleft()
            if lease.stage is Stage.HELD:
                if lease.fresh_until >= now:
                    return lease
                self._return(lease)
        return None

    def _drop(self, lease: RedisLease) -> None:
        del self._granted[lease]
        self._load -= len(lease.message.body)
        if lease.suspect:
            self._suspects -= 1
            self._waiting_there = False  # there may be another one, which was kept from it until now

    def _return(self, lease: RedisLease) -> None:
        self._waiting_there = False
        lease.give_back()

    def _drop_all(self) -> None:
        """The queue is gone, and with it what was fetched ahead."""
        while self._buffer:
            self.forget(self._buffer.popleft())

    def _want(self) -> None:
        """Ask for messages, if there is room, or wait until there is."""
        if not self._active or self._left or self._waiting_there or self._claimed_at is not None:
            return
        if len(self._granted) < self._prefetch:
            self.desk.want(self)
        elif self._granted and self._lapse is None:
            first = min(lease.until for lease in self._granted)
            self._lapse = self.desk.loop.call_at(first + 0.001, self._on_lapse)

    def _look_in(self, seconds: float, *, sooner: bool = False) -> None:
        when = self.desk.loop.time() + seconds
        if self._look is not None:
            if sooner and not self._look.cancelled() and self._look.when() <= when:
                return
            self._look.cancel()
        self._look = self.desk.loop.call_at(when, self._on_look)

    def _on_lapse(self) -> None:
        """Leases of one's own that are over take up no room any more."""
        self._lapse = None
        now = self.desk.loop.time()
        for lease in [lease for lease in self._granted if lease.until <= now and lease.stage is Stage.HELD]:
            self._drop(lease)
        self._want()

    def _on_look(self) -> None:
        """See by oneself: leases of others may be over."""
        self._look = None
        self._waiting_there = False
        if self._receivers or self._buffer:
            self._want()
        else:
            self._active = False  # nobody asks; the next `receive` looks again

    def _tidy_later(self) -> None:
        if self._tidy is None and self._buffer:
            self._tidy = self.desk.loop.call_at(self._buffer[0].fresh_until, self._on_tidy)

    def _on_tidy(self) -> None:
        """What lay here for half of its lease goes back, or it would run out and count as an attempt."""
        self._tidy = None
        now = self.desk.loop.time()
        while self._buffer and self._buffer[0].fresh_until <= now:
            self._active = False
            self._return(self._buffer.popleft())
        self._tidy_later()

    def _calm(self) -> None:
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
