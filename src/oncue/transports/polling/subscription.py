"""Subscriptions: they ask for messages as there is room, hand them out, and watch over the time of those that are held.

A request that is given up may have been answered already, so none is: each ends by itself, after seconds.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import Future, Task, TimerHandle
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Generic

from oncue.core.errors import OnCueError, QueueNotFoundError, TransportClosedError, again
from oncue.transports.checks import check_prefetch
from oncue.transports.polling.lease import PollingLease
from oncue.transports.polling.source import Arrival, R, Source
from oncue.transports.polling.tasks import Tasks
from oncue.transports.receivers import Receivers
from oncue.transports.stages import Stage

_HOLD_OFF, _LONGEST_HOLD_OFF = 1.0, 8.0
"""Seconds for which other suspects are put off, about. They double with each answer while one and the same is held."""
_CALM = 1.0
"""Seconds after a suspect was handed out in which nothing is asked for: what ends its consumer mostly does so soon."""
_SPARE = 0.5
"""Part of the time that the service keeps a message for, after which it is asked to go on, if the lease is longer."""
_AGAIN = 1.0
"""Seconds until it is asked once more when it could not be."""
_PLENTY = 100
"""Messages in one answer that show that there are more, though as many as were asked for did not come."""

_HERE = Stage.WAITING, Stage.HELD, Stage.SETTLING


class PollingSubscription(Generic[R]):
    """Messages of one queue. It asks for them from the first `receive` on, until nobody has asked for half a lease."""

    def __init__(self, source: Source[R], tasks: Tasks, check_open: Callable[[], None], prefetch: int) -> None:
        self.source = source
        self.tasks = tasks
        self._loop = tasks.loop
        self._fresh = source.terms.lease / 2
        self._check_transport = check_open
        self._prefetch = check_prefetch(prefetch)
        self._receivers = Receivers(lambda: len(self._buffer))
        self._buffer: deque[PollingLease[R]] = deque()
        self._leases: dict[PollingLease[R], None] = {}
        self._held = 0
        self._groups: set[str] = set()  # of which somebody holds a message
        self._suspects = 0  # that are held or wait
        self._hold_off = _HOLD_OFF
        self._calm_until = 0.0
        self._polls: set[Task[None]] = set()
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

    async def receive(self) -> PollingLease[R]:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self.check_open()
            lease = self._next()
            self._active = True
            self._want(waiting=lease is None)
            if lease is not None:
                return lease
            await self._receivers.wait()

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        if self._left:
            return
        while self._buffer and self._held + len(self._buffer) > prefetch:
            self._return(self._buffer.pop())
        self._want()

    async def leave(self) -> None:
        """Release what is not settled; may be called twice, and goes on when it is cancelled."""
        if self._leaving is None:
            self._left = True
            self._leaving = self._loop.create_task(self._leave())
        await asyncio.shield(self._leaving)

    def check_open(self) -> None:
        """Raise `TransportClosedError` when it may not be used any more."""
        self._check_transport()
        if self._left:
            raise TransportClosedError

    # For leases

    def over(self, lease: PollingLease[R]) -> None:
        """It takes up no room any more; may be said twice."""
        if lease.stage is Stage.OVER:
            return
        stage, lease.stage = lease.stage, Stage.OVER
        self._leases.pop(lease, None)
        if stage is not Stage.RETURNING:
            self._gone(lease, held=stage is not Stage.WAITING)
        if stage is Stage.WAITING:
            with suppress(ValueError):
                self._buffer.remove(lease)
        if not self._leases and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        self._receivers.wake()
        self._want()

    def unsettled(self, lease: PollingLease[R]) -> None:
        """What was to be done with it was not: it is held as before."""
        if self._left:
            self._gone(lease, held=True)
            lease.give_back()
        else:
            self.watch(lease)

    def behind(self, lease: PollingLease[R]) -> None:
        """It goes back, or is over: those of its group that are here already are to come after it."""
        group = lease.received.group
        if group is not None:
            for other in [each for each in self._buffer if each.received.group == group]:
                self._buffer.remove(other)
                self._return(other)

    def not_given_back(self, error: OnCueError) -> None:
        text = "a message of queue %r could not be given back and will come when its time is over: %s"
        self.source.log.warning(text, self.source.name, error)

    def not_kept(self, lease: PollingLease[R], error: OnCueError) -> None:
        """The service is asked again soon."""
        text = "the service could not be told how long a message of queue %r is held: %s"
        self.source.log.warning(text, self.source.name, error)
        lease.kept = self._loop.time() + _AGAIN + _SPARE * self.source.terms.kept
        if lease.stage in _HERE:
            self.watch(lease)

    def watch(self, lease: PollingLease[R]) -> None:
        """Its time may run out, or the service's."""
        when = self._due(lease)
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._on_time)

    # Asking

    def _want(self, *, waiting: bool = False) -> None:
        """Ask for messages, if there is room; `waiting`: somebody is about to wait for them."""
        terms = self.source.terms
        while self._active and not self._left:
            room = self._prefetch - len(self._leases) - self._wanted
            if room <= 0 or (self._empty and not (waiting or self._receivers)):
                return
            if self._suspects and (self.source.fifo or self._waits_alone()):
                return
            if len(self._polls) >= (terms.polls if self._plenty else 1):
                return
            if self._polls and room < min(self._prefetch / terms.polls, terms.most):
                return  # more room comes while those are under way
            most = min(room, terms.most)
            self._wanted += most
            task = self.tasks.poll(self._poll(most, first=not self._polls))
            self._polls.add(task)
            task.add_done_callback(self._polled)

    def _polled(self, task: Task[None]) -> None:
        self._polls.discard(task)
        if self._suspects:
            self._receivers.wake()
        self._want()

    async def _poll(self, most: int, *, first: bool) -> None:
        try:
            arrivals = await self.source.poll(most, self._empty if first else None)
        except OnCueError as error:
            self._wanted -= most
            self._failed(error)
            return
        except BaseException:
            self._wanted -= most
            raise
        self._wanted -= most
        if arrivals:
            self._empty = 0
            self._plenty = len(arrivals) >= min(most, _PLENTY)
        elif first:
            self._empty += 1
            self._plenty = False
        self._arrived(arrivals)

    def _failed(self, error: OnCueError) -> None:
        self._active = False
        if isinstance(error, QueueNotFoundError):
            for lease in self._buffer:
                self._gone(lease, held=False)
                self._leases.pop(lease, None)
                lease.stage = Stage.OVER
            self._buffer.clear()
        self._receivers.fail(lambda: again(error))

    def _arrived(self, arrivals: Sequence[Arrival[R]]) -> None:
        held_up: dict[str, float] = {}  # groups, by a message that is not due yet
        put_off = False
        for arrival in arrivals:
            lease: PollingLease[R] = PollingLease(self, arrival.received, arrival.at)
            self._leases[lease] = None
            rest, group = arrival.rest, lease.received.group
            if group is not None:
                rest = max(rest, held_up.get(group, 0.0))
                held_up[group] = rest
            if arrival.old:
                lease.drop()
            elif rest > 0:
                lease.give_back(rest)
            elif self._left or not self._active:
                lease.give_back()
            elif lease.suspect and self._suspects and not self.source.fifo:
                lease.give_back(self._hold_off * random.uniform(0.5, 1.5))  # so that they do not all come back together
                put_off = True
            else:
                self._keep_here(lease)
        if put_off:
            self._hold_off = min(2 * self._hold_off, _LONGEST_HOLD_OFF)
        self._tidy_later()
        self._receivers.wake()

    def _keep_here(self, lease: PollingLease[R]) -> None:
        self._suspects += lease.suspect
        self._buffer.append(lease)
        self.watch(lease)
        if self.source.terms.shorten:
            self.tasks.begin(lease.keep())

    # Inside

    def _next(self) -> PollingLease[R] | None:
        if not self._buffer or self._held >= self._prefetch:
            return None
        now, fifo = self._loop.time(), self.source.fifo
        self._return_old(now)
        crowded = bool(self._suspects) and self._is_crowded()
        for lease in list(self._buffer if fifo else islice(self._buffer, 2)):  # of two, one at least is no suspect
            group = lease.received.group
            if (lease.suspect and crowded) or group in self._groups:
                continue
            self._buffer.remove(lease)
            lease.stage = Stage.HELD
            self._held += 1
            if group is not None:
                self._groups.add(group)
            if lease.suspect:
                self._calm_until = now + _CALM
                self._loop.call_later(_CALM, self._want)
            return lease
        return None

    def _is_crowded(self) -> bool:
        """Whether a suspect would take others like it along: those that are held, or on their way here or back."""
        last = Stage.SETTLING if self.source.fifo else Stage.RETURNING
        return bool(self._polls) or any(lease.suspect and Stage.HELD <= lease.stage <= last for lease in self._leases)

    def _waits_alone(self) -> bool:
        """Whether nothing may be asked for: a suspect waits for those on their way to be gone, or was only just handed out."""
        return self._loop.time() < self._calm_until or any(lease.suspect for lease in islice(self._buffer, 2))

    def _gone(self, lease: PollingLease[R], *, held: bool) -> None:
        if lease.suspect:
            self._suspects -= 1
            self._hold_off, self._calm_until = _HOLD_OFF, 0.0
        if held:
            self._held -= 1
            if lease.received.group is not None:
                self._groups.discard(lease.received.group)

    def _return(self, lease: PollingLease[R]) -> None:
        self._gone(lease, held=False)
        lease.give_back()

    def _return_old(self, now: float) -> bool:
        """What lay here for long goes back; whether any did."""
        found = False
        while self._buffer and self._buffer[0].arrived + self._fresh <= now:
            lease = self._buffer.popleft()
            self._return(lease)
            self.behind(lease)
            found = True
        return found

    def _due(self, lease: PollingLease[R]) -> float:
        """When something has to be done with it: it ends, or the service is to be asked to go on keeping it."""
        if lease.kept >= lease.until:
            return lease.until
        return min(lease.until, lease.kept - _SPARE * self.source.terms.kept)

    def _on_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        for lease in list(self._leases):
            if lease.stage is Stage.HELD and lease.until <= now:
                self.behind(lease)
                self.over(lease)
            elif lease.stage in _HERE and lease.until > now >= self._due(lease):
                lease.kept = now + self.source.terms.kept  # it is asked; if that fails, the service's time still runs
                self.tasks.begin(lease.keep())
        for lease in self._leases:
            if lease.stage in _HERE and self._due(lease) > now:
                self.watch(lease)

    def _tidy_later(self) -> None:
        if self._buffer and self._tidy is None:
            self._tidy = self._loop.call_at(self._buffer[0].arrived + self._fresh, self._on_tidy)

    def _on_tidy(self) -> None:
        """Nothing more is taken, when something lay here for long, before somebody asks."""
        self._tidy = None
        if self._return_old(self._loop.time()):
            self._active = bool(self._receivers)
        self._tidy_later()

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
        if self._polls:
            await asyncio.wait(self._polls, timeout=self.source.terms.last_poll)
        while self._leases:
            self._quiet = self._loop.create_future()
            await self._quiet
