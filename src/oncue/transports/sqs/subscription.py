"""Subscriptions: they ask for messages as there is room, hand them out, and watch over the time of those that are held."""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import CancelledError, Future, Task, TimerHandle
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from oncue.core.errors import ConnectionLostError, OnCueError, QueueNotFoundError, TransportClosedError, again
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_prefetch
from oncue.transports.sqs.calls import moment
from oncue.transports.sqs.codec import decode
from oncue.transports.sqs.lease import SQSLease, Stage
from oncue.transports.sqs.lines import FULL
from oncue.transports.sqs.queues import Place, visibility

if TYPE_CHECKING:
    from oncue.transports.sqs.desk import Desk

_log = logging.getLogger("oncue.transports.sqs")

_POLLS = 4
"""Requests for messages that are under way while there are many."""
_PATIENT = 5
"""After so many requests that brought nothing they wait longer, as long as they may in the end."""
_HOLD_OFF, _LONGEST_HOLD_OFF = 1.0, 8.0
"""Seconds for which other suspects are put off, about. They double with each answer while one and the same is held."""
_CALM = 1.0
"""Seconds after a suspect was handed out in which nothing is asked for: what ends its consumer mostly does so soon."""
_LAST_POLL = 2.0
"""Seconds that the last request gets to end by itself, so that nothing comes that nobody is there for."""


class SQSSubscription:
    """Messages of one queue. It asks for them from the first `receive` on, until nobody has asked for half a lease."""

    def __init__(
        self, desk: Desk, check_open: Callable[[], None], place: Place, spec: QueueSpec, prefetch: int
    ) -> None:
        self.desk = desk
        self.place = place
        self.name = spec.name
        self.retention = spec.retention
        address = desk.address
        self._visibility = visibility(spec.lease, address.visibility)
        self.lease = min(max(spec.lease, address.visibility), address.longest_hold)
        self._check_transport = check_open
        self._prefetch = check_prefetch(prefetch)
        self._waiters: deque[Future[None]] = deque()
        self._buffer: deque[SQSLease] = deque()
        self._leases: dict[SQSLease, None] = {}
        self._groups: dict[str, int] = {}  # of a FIFO queue, of which somebody holds a message
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
        self._lapse: TimerHandle | None = None
        self._tidy: TimerHandle | None = None
        self._quiet: Future[None] | None = None

    # For those who receive

    async def receive(self) -> SQSLease:
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
        while self._buffer and len(self._leases) > prefetch and self._kept() > prefetch:
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

    def over(self, lease: SQSLease) -> None:
        """It takes up no room any more; may be said twice."""
        held = lease.stage in {Stage.HELD, Stage.SETTLING}
        if lease.stage is Stage.OVER:
            return
        returning = lease.stage is Stage.RETURNING
        lease.stage = Stage.OVER
        self._leases.pop(lease, None)
        if not returning:
            self._gone(lease, held=held)
        if not self._leases and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        self._wake()
        self._want()

    def unsettled(self, lease: SQSLease) -> None:
        """What was to be done with it was not: it is held as before."""
        if self._left:
            self._gone(lease, held=True)
            lease.give_back()
        else:
            self.watch(lease.until)

    def not_given_back(self, error: OnCueError) -> None:
        _log.warning(
            "a message of queue %r could not be given back and will come when its time is over: %s", self.name, error
        )

    def watch(self, until: float) -> None:
        """A lease may run out then."""
        if self._lapse is None or until < self._lapse.when():
            if self._lapse is not None:
                self._lapse.cancel()
            self._lapse = self.desk.loop.call_at(until, self._on_lapse)

    # Asking

    def _want(self) -> None:
        """Ask for messages, if there is room."""
        while self._active and not self._left:
            room = self._prefetch - len(self._leases) - self._wanted
            if self._suspects and (self.place.fifo or self._waits_alone()):
                return
            if room <= 0 or len(self._polls) >= (_POLLS if self._plenty else 1):
                return
            if not self._waiters and self._empty:
                return
            most = min(room, FULL)
            self._wanted += most
            task = self.desk.poll(self._poll(most, first=not self._polls))
            self._polls.add(task)
            task.add_done_callback(self._polled)

    def _polled(self, task: Task[None]) -> None:
        self._polls.discard(task)
        if self._suspects:
            self._wake()
        self._want()

    async def _poll(self, most: int, *, first: bool) -> None:
        longest = self.desk.address.wait
        wait = (
            0
            if not first
            else longest
            if self._empty > _PATIENT + 4
            else min(longest, 2 ** max(0, self._empty - _PATIENT))
        )
        clock = self.desk.clock
        clock.begin()
        try:
            answer = await self._ask(most, wait)
        except OnCueError as error:
            clock.end()
            self._wanted -= most
            self._failed(error)
            return
        except BaseException:
            clock.end()
            self._wanted -= most
            raise
        arrived = clock.end()
        self._wanted -= most
        messages = answer.get("Messages") or ()
        if messages:
            self._empty = 0
            self._plenty = len(messages) == most
        elif first:
            self._empty += 1
            self._plenty = False
        self._arrived(messages, arrived, answer)

    async def _ask(self, most: int, wait: int) -> Any:
        try:
            self.place = await self.desk.queues.place(self.name)
            return await self.desk.calls.ask(
                "receive_message",
                self.name,
                extra=wait,
                QueueUrl=self.place.url,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=wait,
                VisibilityTimeout=self._visibility,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
        except QueueNotFoundError:
            self.desk.queues.forget(self.name)
            raise
        except ConnectionLostError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            self.desk.queues.forget(self.name)  # some servers never answer who waits for a queue that is deleted
            await self.desk.queues.place(self.name)
            return {}

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

    def _arrived(self, messages: Any, arrived: float, answer: Any) -> None:
        put_off = False
        for there in messages:
            lease = SQSLease(self, decode(there), arrived)
            self._leases[lease] = None
            rest = self._rest(lease, answer)
            if self._is_old(lease, answer):
                lease.drop()
            elif rest > 0:
                self.desk.begin(self._hop(lease, rest))
            elif self._left or not self._active:
                lease.give_back()
            elif lease.suspect and self._suspects and not self.place.fifo:
                lease.give_back(self._hold_off * random.uniform(0.5, 1.5))  # so that they do not all come back together
                put_off = True
            else:
                self._suspects += lease.suspect
                self._buffer.append(lease)
        if put_off:
            self._hold_off = min(2 * self._hold_off, _LONGEST_HOLD_OFF)
        if self._buffer and self._tidy is None:
            self._tidy = self.desk.loop.call_at(self._buffer[0].arrived + self.lease / 2, self._on_tidy)
        self._wake()

    def _is_old(self, lease: SQSLease, answer: Any) -> bool:
        """Whether it was kept too long, by the service's clock alone."""
        if self.retention is None or not lease.received.sent:
            return False
        now = moment(answer)
        head = lease.received.text.head
        began = head.since or lease.received.sent + head.delay
        return now is not None and now - began >= self.retention * 1000

    def _rest(self, lease: SQSLease, answer: Any) -> float:
        """Seconds of a delay that are not over yet."""
        head, received = lease.received.text.head, lease.received
        if not head.rest:
            return 0.0
        now = received.received or moment(answer) or 0
        return (head.delay + head.rest - max(0, now - received.sent)) / 1000

    async def _hop(self, lease: SQSLease, rest: float) -> None:
        """Have it delayed once more; nobody has seen it."""
        lease.stage = Stage.RETURNING
        await lease._give_back(rest)  # noqa: SLF001  # a lease and its subscription are one thing

    # Inside

    def _next(self) -> SQSLease | None:
        now = self.desk.loop.time()
        if self._kept() - len(self._buffer) >= self._prefetch:
            return None
        for lease in list(self._buffer):
            if lease.arrived + self.lease / 2 < now:
                self._buffer.remove(lease)
                self._return(lease)
                continue
            group = lease.received.group
            if (lease.suspect and self._is_crowded()) or (self.place.fifo and group in self._groups):
                continue
            self._buffer.remove(lease)
            lease.stage = Stage.HELD
            if group is not None:
                self._groups[group] = self._groups.get(group, 0) + 1
            self.watch(lease.until)
            if lease.suspect:
                self._calm_until = now + _CALM
                self.desk.loop.call_later(_CALM, self._want)
            return lease
        return None

    def _kept(self) -> int:
        return sum(lease.stage is not Stage.RETURNING for lease in self._leases) if self._buffer else 0

    def _is_crowded(self) -> bool:
        """Whether a suspect would take others like it along: those that are held, or on their way here or back."""
        if self.place.fifo:
            return any(lease.suspect and lease.stage in {Stage.HELD, Stage.SETTLING} for lease in self._leases)
        return bool(self._polls) or any(lease.suspect and lease.stage is not Stage.WAITING for lease in self._leases)

    def _waits_alone(self) -> bool:
        """Whether nothing may be asked for: a suspect waits for others to be gone, or was only just handed out."""
        return self.desk.loop.time() < self._calm_until or any(lease.suspect for lease in self._buffer)

    def _gone(self, lease: SQSLease, *, held: bool) -> None:
        if lease.suspect:
            self._suspects -= 1
            self._hold_off, self._calm_until = _HOLD_OFF, 0.0
        group = lease.received.group
        if group is not None and held:
            left = self._groups.get(group, 1) - 1
            if left:
                self._groups[group] = left
            else:
                self._groups.pop(group, None)

    def _return(self, lease: SQSLease) -> None:
        self._gone(lease, held=False)
        lease.give_back()

    def _on_lapse(self) -> None:
        self._lapse = None
        now = self.desk.loop.time()
        held = [lease for lease in self._leases if lease.stage is Stage.HELD]
        for lease in held:
            if lease.until <= now:
                self._follow(lease)
                self.over(lease)
        later = [lease.until for lease in held if lease.until > now]
        if later:
            self.watch(min(later))

    def _follow(self, lease: SQSLease) -> None:
        """Those behind it in its group, which are here already, are to come after it."""
        if lease.received.group is not None:
            for other in [each for each in self._buffer if each.received.group == lease.received.group]:
                self._buffer.remove(other)
                self._return(other)

    def behind(self, lease: SQSLease) -> None:
        """The lease goes back: so does what comes after it."""
        self._follow(lease)

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
        for handle in (self._lapse, self._tidy):
            if handle is not None:
                handle.cancel()
        self._failed(TransportClosedError())
        self._buffer.clear()
        for lease in list(self._leases):
            if lease.stage in {Stage.WAITING, Stage.HELD}:
                self._gone(lease, held=lease.stage is Stage.HELD)
                lease.give_back()
        if self._polls:
            await asyncio.wait(self._polls, timeout=_LAST_POLL)
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
