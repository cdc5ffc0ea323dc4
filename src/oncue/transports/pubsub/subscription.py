"""Subscriptions: they ask for messages as there is room, hand them out, and watch over the time of those that are held.

Messages are pulled, and not streamed: a pull says how many there is room for, which changes all the time, and brings more at once.
A pull that is given up may have been answered already, so none is: each ends by itself, after seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import CancelledError, Future, Task, TimerHandle
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from oncue.core.errors import (
    LeaseLostError,
    OnCueError,
    QueueNotFoundError,
    TransportClosedError,
    again,
)
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_prefetch
from oncue.transports.pubsub.codec import decode
from oncue.transports.pubsub.lease import PubSubLease, Stage
from oncue.transports.pubsub.pulls import pull, waits
from oncue.transports.pubsub.queues import Place, held

if TYPE_CHECKING:
    from oncue.transports.pubsub.desk import Desk

_log = logging.getLogger("oncue.transports.pubsub")

_PULLS = 4
"""Pulls that are under way while there are many messages."""
_HOLD_OFF, _LONGEST_HOLD_OFF = 0.25, 8.0
"""Seconds for which a second suspect is put off. They double."""
_CALM = 1.0
"""Seconds after a suspect was handed out in which nothing is asked for: what ends its consumer mostly does so soon."""
_SPARE = 0.5
"""Part of the time that the service keeps a message for, after which it is asked to go on, if the lease is longer."""
_AGAIN = 1.0
"""Seconds until it is asked once more when it could not be."""


class PubSubSubscription:
    """Messages of one queue. It asks for them from the first `receive` on, until nobody has asked for half a lease."""

    def __init__(
        self, desk: Desk, check_open: Callable[[], None], place: Place, spec: QueueSpec, prefetch: int
    ) -> None:
        self.desk = desk
        self.place = place
        self.name = spec.name
        self.retention = spec.retention
        self.lease = spec.lease
        self.deadline = float(place.deadline)
        self._short = held(spec.lease) != place.deadline and spec.lease < place.deadline
        self._check_transport = check_open
        self._prefetch = check_prefetch(prefetch)
        self._waiters: deque[Future[None]] = deque()
        self._buffer: deque[PubSubLease] = deque()
        self._leases: dict[PubSubLease, None] = {}
        self._orders: dict[str, int] = {}  # of a FIFO queue, of which somebody holds a message
        self._suspects = 0  # that are held or wait
        self._hold_off = _HOLD_OFF
        self._calm_until = 0.0
        self._pulls: set[Task[None]] = set()
        self._wanted = 0
        self._plenty = False
        self._empty = 0
        self._active = False
        self._left = False
        self._leaving: Task[None] | None = None
        self._timer: TimerHandle | None = None
        self._tidy: TimerHandle | None = None
        self._quiet: Future[None] | None = None

    # For those who receive

    async def receive(self) -> PubSubLease:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self.check_open()
            lease = self._next()
            self._active = True
            self._want()
            if lease is not None:
                return lease
            await self._wait()

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        if self._left:
            return
        while self._buffer and self._kept() > prefetch:
            self._return(self._buffer.pop())
        self._want()

    async def leave(self) -> None:
        """Release what is not settled; may be called twice, and goes on when it is cancelled."""
        if self._leaving is None:
            self._left = True
            self._leaving = self.desk.loop.create_task(self._leave())
        await asyncio.shield(self._leaving)

    def check_open(self) -> None:
        """Raise `TransportClosedError` when it may not be used any more."""
        self._check_transport()
        if self._left:
            raise TransportClosedError

    # For leases

    def over(self, lease: PubSubLease) -> None:
        """It takes up no room any more; may be said twice."""
        if lease.stage is Stage.OVER:
            return
        stage, lease.stage = lease.stage, Stage.OVER
        self._leases.pop(lease, None)
        if stage is not Stage.RETURNING:
            self._gone(lease, held=stage is not Stage.WAITING)
        if not self._leases and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        self._wake()
        self._want()

    def unsettled(self, lease: PubSubLease) -> None:
        """What was to be done with it was not: it is held as before."""
        if self._left:
            self._gone(lease, held=True)
            lease.give_back()
        else:
            self.watch(lease)

    def behind(self, lease: PubSubLease) -> None:
        """In a FIFO queue it goes back: so does what comes after it and is here already."""
        if self.place.fifo:
            for other in [each for each in self._buffer if each.received.order == lease.received.order]:
                self._buffer.remove(other)
                self._return(other)

    def not_given_back(self, error: OnCueError) -> None:
        if not isinstance(error, LeaseLostError | QueueNotFoundError):
            _log.warning(
                "a message of queue %r could not be given back and will come when its time is over: %s",
                self.name,
                error,
            )

    def not_kept(self, lease: PubSubLease, error: OnCueError) -> None:
        """It is asked for again soon."""
        _log.warning("Pub/Sub could not be told how long a message of queue %r is held: %s", self.name, error)
        lease.kept = self.desk.loop.time() + _AGAIN + _SPARE * self.deadline
        if lease.stage in {Stage.WAITING, Stage.HELD, Stage.SETTLING}:
            self.watch(lease)

    def watch(self, lease: PubSubLease) -> None:
        """Its time may run out, or the service's."""
        when = self._due(lease)
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.desk.loop.call_at(when, self._on_time)

    # Asking

    def _want(self) -> None:
        """Ask for messages, if there is room."""
        while self._active and not self._left:
            room = self._prefetch - len(self._leases) - self._wanted
            if self._suspects and (self.place.fifo or self._waits_alone()):
                return
            if room <= 0 or len(self._pulls) >= (_PULLS if self._plenty and not self.place.fifo else 1):
                return
            if self._pulls and room < self._prefetch / _PULLS:  # more room comes while those are under way
                return
            if not self._waiters and self._empty:
                return
            most = min(room, 1000)
            self._wanted += most
            task = self.desk.loop.create_task(self._pull(most, first=not self._pulls))
            self._pulls.add(task)
            task.add_done_callback(self._pulled)

    def _pulled(self, task: Task[None]) -> None:
        self._pulls.discard(task)
        if self._suspects:
            self._wake()
        self._want()

    async def _pull(self, most: int, *, first: bool) -> None:
        try:
            self.place = await self.desk.queues.place(self.name)
            messages = await pull(self.desk, self.place, most, waits(self._empty if first else -1, self.desk.address))
        except OnCueError as error:
            self._wanted -= most
            self._failed(error)
            return
        except BaseException:
            self._wanted -= most
            raise
        self._wanted -= most
        if messages:
            self._empty = 0
            self._plenty = len(messages) >= min(most, 100)
        elif first:
            self._empty += 1
            self._plenty = False
        self._arrived(messages)

    def _failed(self, error: OnCueError) -> None:
        self._active = False
        if isinstance(error, QueueNotFoundError):
            for lease in self._buffer:
                self._gone(lease, held=False)
                self._leases.pop(lease, None)
                lease.stage = Stage.OVER
            self._buffer.clear()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(again(error))

    def _arrived(self, messages: Any) -> None:
        now, clock = self.desk.loop.time(), time.time() * 1000
        held_up: dict[str, float] = {}  # of a FIFO queue, by a message that is not due yet
        for there in messages:
            lease = PubSubLease(self, decode(there), now)
            self._leases[lease] = None
            self._sort(lease, clock, held_up)
            if lease.stage is Stage.WAITING and self._short:
                self.desk.begin(lease.keep())
        if self._buffer and self._tidy is None:
            self._tidy = self.desk.loop.call_at(self._buffer[0].arrived + self.lease / 2, self._on_tidy)
        self._wake()

    def _sort(self, lease: PubSubLease, clock: float, held_up: dict[str, float]) -> None:
        """What is to be done with it first."""
        received, rest = lease.received, 0.0
        if self.place.fifo:
            rest = max(
                held_up.get(received.order, 0.0), (received.due - clock) / 1000 if received.text.head.delay else 0
            )
            if rest > 0:
                held_up[received.order] = rest
        if self.retention is not None and clock - lease.received.began >= self.retention * 1000:
            lease.drop()
        elif rest > 0:
            lease.wait(rest)
        elif self._left or not self._active:
            lease.give_back()
        elif lease.suspect and self._suspects and not self.place.fifo:
            lease.give_back(self._hold_off)
            self._hold_off = min(2 * self._hold_off, _LONGEST_HOLD_OFF)
        else:
            self._suspects += lease.suspect
            self._buffer.append(lease)
            self.watch(lease)

    # Inside

    def _next(self) -> PubSubLease | None:
        now = self.desk.loop.time()
        if not self._buffer or self._kept() - len(self._buffer) >= self._prefetch:
            return None
        while self._buffer and self._buffer[0].arrived + self.lease / 2 < now:
            self._return(self._buffer.popleft())
        crowded = bool(self._suspects) and self._is_crowded()
        for lease in list(self._buffer) if self.place.fifo else list(islice(self._buffer, 2)):
            order = lease.received.order
            if (lease.suspect and crowded) or (self.place.fifo and order in self._orders):
                continue
            self._buffer.remove(lease)
            lease.stage = Stage.HELD
            if self.place.fifo:
                self._orders[order] = self._orders.get(order, 0) + 1
            if lease.suspect:
                self._calm_until = now + _CALM
                self.desk.loop.call_later(_CALM, self._want)
            return lease
        return None

    def _is_crowded(self) -> bool:
        """Whether a suspect would take others like it along: those on their way here or back, or that are held."""
        if self._pulls:
            return True
        with_them = {Stage.HELD, Stage.SETTLING} if self.place.fifo else {Stage.HELD, Stage.SETTLING, Stage.RETURNING}
        return any(lease.suspect and lease.stage in with_them for lease in self._leases)

    def _waits_alone(self) -> bool:
        """Whether nothing may be asked for: a suspect waits for those on their way to be gone, or was only just handed out."""
        return self.desk.loop.time() < self._calm_until or any(lease.suspect for lease in islice(self._buffer, 2))

    def _kept(self) -> int:
        """Leases that take up room, and are not on their way back."""
        return self._held_count() + len(self._buffer)

    def _held_count(self) -> int:
        if len(self._leases) < self._prefetch:
            return len(self._leases) - len(self._buffer)
        return sum(lease.stage in {Stage.HELD, Stage.SETTLING} for lease in self._leases)

    def _gone(self, lease: PubSubLease, *, held: bool) -> None:
        if lease.suspect:
            self._suspects -= 1
            self._hold_off, self._calm_until = _HOLD_OFF, 0.0
        if self.place.fifo and held:
            left = self._orders.get(lease.received.order, 1) - 1
            if left:
                self._orders[lease.received.order] = left
            else:
                self._orders.pop(lease.received.order, None)

    def _return(self, lease: PubSubLease) -> None:
        self._gone(lease, held=False)
        lease.give_back()

    def _due(self, lease: PubSubLease) -> float:
        """When something has to be done with it: it ends, or the service is to be asked to go on keeping it."""
        if lease.kept >= lease.until:
            return lease.until
        return min(lease.until, lease.kept - _SPARE * self.deadline)

    def _on_time(self) -> None:
        self._timer = None
        now = self.desk.loop.time()
        for lease in list(self._leases):
            if lease.stage is Stage.HELD and lease.until <= now:
                self.behind(lease)
                self.over(lease)
            elif lease.stage in {Stage.WAITING, Stage.HELD, Stage.SETTLING} and lease.until > now >= self._due(lease):
                lease.kept = now + self.deadline  # it is being asked for; if that fails, the service's time still runs
                self.desk.begin(lease.keep())
        for lease in self._leases:
            if lease.stage in {Stage.WAITING, Stage.HELD, Stage.SETTLING} and self._due(lease) > now:
                self.watch(lease)

    def _on_tidy(self) -> None:
        """What lay here for long goes back, and nothing more is taken before somebody asks."""
        self._tidy = None
        now = self.desk.loop.time()
        while self._buffer and self._buffer[0].arrived + self.lease / 2 <= now:
            self._active = bool(self._waiters)
            self._return(self._buffer.popleft())
        if self._buffer:
            self._tidy = self.desk.loop.call_at(self._buffer[0].arrived + self.lease / 2, self._on_tidy)

    async def _leave(self) -> None:
        self._active = False
        for handle in (self._timer, self._tidy):
            if handle is not None:
                handle.cancel()
        self._failed(TransportClosedError())
        self._buffer.clear()
        for lease in list(self._leases):
            if lease.stage in {Stage.WAITING, Stage.HELD}:
                self._gone(lease, held=lease.stage is Stage.HELD)
                lease.give_back()
        if self._pulls:
            await asyncio.wait(self._pulls)
        while self._leases:
            self._quiet = self.desk.loop.create_future()
            await self._quiet

    async def _wait(self) -> None:
        waiter: Future[None] = self.desk.loop.create_future()
        self._waiters.append(waiter)
        self._want()
        try:
            await waiter
        except CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake()  # it was this one's turn; somebody else's now
            with suppress(ValueError):
                self._waiters.remove(waiter)
            raise

    def _wake(self) -> None:
        count = len(self._buffer)
        while self._waiters and count > 0:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
