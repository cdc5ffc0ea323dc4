"""Subscriptions: they take messages ahead as there is room, hand them out, and watch over the time of those that are held."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Future, Handle, Task, TimerHandle
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    QueueNotFoundError,
    TransportClosedError,
    TransportError,
    again,
)
from oncue.transports.checks import check_prefetch
from oncue.transports.nats.codec import consumer_of, decode, delivery_of, status, stored_at
from oncue.transports.nats.core import RefusedError, tell
from oncue.transports.nats.faults import CONSUMER_NOT_FOUND, fault
from oncue.transports.nats.intake import Intake
from oncue.transports.nats.lease import PROGRESS, NATSLease
from oncue.transports.nats.mover import Mover
from oncue.transports.nats.place import Place
from oncue.transports.nats.publisher import Publisher
from oncue.transports.nats.queues import Queues
from oncue.transports.nats.turns import AT_ONCE, Turns
from oncue.transports.receivers import Receivers
from oncue.transports.stages import Stage

_log = logging.getLogger("oncue.transports.nats")

_NOBODY = 503
_LOAD = 16 * 1024 * 1024
"""Bytes that are fetched ahead, about."""
_ASKED, _FEWEST = 2048, 16
"""Messages that all subscriptions of a connection ask for at once, about, and each of them at least: what is answered while
thousands are on their way comes behind them, and everything that waits for it costs room and time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds for which nothing is asked for after a second suspect came. They double."""
_KEPT = 3
"""So many times in a deadline the server is told that work goes on."""


class NATSSubscription:
    """Messages of one queue. It takes them from the first `receive` on, until nobody has asked for half a lease."""

    def __init__(
        self,
        queues: Queues,
        publisher: Publisher,
        check_open: Callable[[], None],
        together: Callable[[], int],
        turns: Turns,
        place: Place,
        prefetch: int,
    ) -> None:
        self.publisher = publisher
        self.place = place
        self.name = place.spec.name
        self.link = queues.jetstream.link
        self.loop = asyncio.get_running_loop()
        self._queues = queues
        self._check_transport = check_open
        self._together = together
        self._turns = turns
        self._begin_turn = self._take_turn  # always the same object
        self._prefetch = check_prefetch(prefetch)
        self._intake = Intake(queues, self._place, lambda: self.place.consumer, self._arrived, self._ended)
        self._intake.on_room = self._aim
        self._intake.on_forgotten = self._forget
        self._mover = Mover(queues, publisher, self._place) if place.mover else None
        self._stale = place.spec.lease / 2
        self._receivers = Receivers(lambda: min(len(self._buffer), self._prefetch - self._held))
        self._buffer: deque[NATSLease] = deque()
        self._leases: dict[NATSLease, None] = {}  # whatever is not settled
        self._taken = 0  # of those, held or in the buffer
        self._held = 0
        self.settling = 0  # of those held
        self._suspects = 0
        self._careful: int | None = None  # while there are suspects, no more than so many are taken
        self._size = 1024.0  # bytes of a message, on average
        self._pause = _FIRST_PAUSE
        self._resume: Handle | None = None
        self._lapse: TimerHandle | None = None
        self._tidy: TimerHandle | None = None
        self._keep: TimerHandle | None = None
        self._asking: set[Task[None]] = set()
        self._active = False
        self._left = False
        self._leaving: Task[None] | None = None
        self._settled: Future[None] | None = None

    def begin(self) -> None:
        """Move what is due, where nobody else does."""
        if self._mover is not None:
            self._mover.begin()

    # For those who receive

    async def receive(self) -> NATSLease:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self.check_open()
            if self._buffer and self._held < self._prefetch:
                lease = self._buffer.popleft()
                if lease.arrived + self._stale <= self.loop.time():
                    self._return(lease)
                    continue
                self._held += 1
                lease.stage = Stage.HELD
                self.watch(lease)
                if not self._buffer and not self._intake.asked:
                    self._aim()
                return lease
            if not self._active:
                self._active = True
                self._aim()
            await self._receivers.wait()

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        if not self._left:
            while self._buffer and self._taken > prefetch:
                self._return(self._buffer.pop())
            self._aim()
            self._receivers.wake()

    async def leave(self) -> None:
        """Release what is not settled; may be called twice, and goes on when it is cancelled."""
        if self._leaving is None:
            self._left = True
            self._leaving = self.loop.create_task(self._leave())
        await asyncio.shield(self._leaving)

    def check_open(self) -> None:
        """Raise `TransportClosedError` when it may not be used any more."""
        self._check_transport()
        if self._left:
            raise TransportClosedError

    # For leases

    def settled(self, lease: NATSLease) -> None:
        """It is over; may be said twice."""
        stage, lease.stage = lease.stage, Stage.OVER
        if lease in self._leases:
            del self._leases[lease]
            if stage is not Stage.RETURNING:
                self.settling -= stage is Stage.SETTLING
                self._gone(lease, held=stage is not Stage.WAITING)
            if not self._leases and self._settled is not None and not self._settled.done():
                self._settled.set_result(None)

    def unsettled(self, lease: NATSLease, *, unsure: bool = True) -> None:
        """Nobody knows whether it was settled, or what was to be sent with it was not stored: it is held as before."""
        lease.unsure = lease.unsure or unsure
        if lease.stage is Stage.SETTLING:
            lease.stage = Stage.HELD
            self.settling -= 1
            if self._left:
                self._let_go(lease)
            else:
                self.watch(lease)

    def said(
        self, header: bytes, error: Exception | None, future: Future[None], lease: NATSLease, *, settles: bool = False
    ) -> None:
        """What the server answered to an acknowledgement, or to a sign that work goes on."""
        if error is not None or (header and status(header)[0] == _NOBODY):
            problem = None if error is None else fault(error, self.link.address.shown)
            task = self.loop.create_task(self._ask_why(future, lease, problem, settles=settles))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            return
        if settles:
            self.settled(lease)
        tell(future)

    def reconnect(self) -> None:
        """There is no connection; have one."""
        self._intake.want(1)

    def watch(self, lease: NATSLease) -> None:
        """Its lease may run out, and its deadline may come before that."""
        if self._lapse is None or lease.until < self._lapse.when():
            if self._lapse is not None:
                self._lapse.cancel()
            self._lapse = self.loop.call_at(lease.until, self._on_lapse)
        if self._keep is None and self._outlasts(lease):
            self._keep = self.loop.call_later(self.place.wait / _KEPT, self._on_keep)

    # What comes

    def _place(self) -> Place:
        self.place = self._queues.known(self.name) or self.place
        return self.place

    def _arrived(self, reply: bytes, header: bytes, body: bytes) -> None:
        delivered, sequence = delivery_of(reply)
        received = decode(header, body, sequence)
        self._size += (len(body) - self._size) / 8
        lease = NATSLease(self, received, reply, sequence, self.loop.time())
        self._leases[lease] = None
        if delivered > 1:
            if self._may_have_been_held(reply):
                received = replace(received, attempts=received.attempts + 1, lost=received.lost + 1)
            lease.give_back(received)
        elif not self._active or self._left or self._taken >= self._prefetch:
            lease.give_back(received)
        elif lease.suspect and self._suspects:
            lease.give_back(received)
            self._hold_off()
        else:
            self._taken += 1
            self._suspects += lease.suspect
            self._buffer.append(lease)
            if self._careful is not None:
                self._feel_the_way(lease)
            self._receivers.wake()
            if self._tidy is None:
                self._tidy = self.loop.call_at(lease.arrived + self._stale, self._on_tidy)
        if not self._intake.asked:
            self._aim()

    def _may_have_been_held(self, reply: bytes) -> bool:
        """Whether whoever had it is gone. What came too recently was on its way to somebody who had just stopped listening:
        the server delivers that once more at once."""
        return time.time() + self.place.skew - stored_at(reply) > self.place.wait / 2

    def _forget(self) -> None:
        """Nothing of what was received up to now is ours: its consumer is gone, perhaps with the queue."""
        self._buffer.clear()
        for lease in list(self._leases):
            if lease.stage in {Stage.WAITING, Stage.HELD}:
                self.settled(lease)

    def _ended(self, error: TransportError) -> None:
        """The intake stopped; whoever waits is told, and asks again."""
        self._active = bool(self._buffer)
        if isinstance(error, QueueNotFoundError):
            self._active = False
            self._forget()
        self._receivers.fail(lambda: again(error))

    def _aim(self) -> None:
        """Ask for as many as there is room for, but not for each one alone."""
        if not self._active or self._left:
            return
        intake = self._intake
        if self._careful is not None and self._careful >= self._prefetch:
            self._go_on()
        most = max(1, min(self._prefetch, int(_LOAD / self._size)))
        if self._careful is not None:
            most = min(most, self._careful)
        at_once = min(most, max(_FEWEST, _ASKED // self._together()))
        if most < self._taken + intake.asked and intake.asked:
            intake.withdraw()
            return
        if at_once < most:
            self._aim_in_turn(most - self._taken)
            return
        passing = len(self._buffer) + self.settling  # what is with no handler will make room by itself
        room = min(most - self._taken, at_once - passing) - intake.asked
        if room > 0 and (room >= at_once / 4 or not intake.asked):
            intake.want(room)

    def _aim_in_turn(self, room: int) -> None:
        """Ask for a few that may come, or, where there are plenty, for as many as there is room for when it is our turn."""
        intake = self._intake
        if intake.asked:
            return
        passing = len(self._buffer) + self.settling
        if not passing:
            self._turns.over(self._begin_turn)
        if room >= _FEWEST and intake.plenty:
            self._turns.ask(self._begin_turn)
        elif room > 0 and not (passing and intake.plenty):  # else there will be more room soon
            intake.want(min(room, _FEWEST))

    def _take_turn(self) -> None:
        room = min(self._prefetch, int(_LOAD / self._size)) - self._taken
        if self._active and not self._left and self._careful is None and room > 0 and not self._intake.asked:
            self._intake.want(min(room, _ASKED // AT_ONCE), waiting=False)
        else:
            self._turns.over(self._begin_turn)

    # Suspects

    def _hold_off(self) -> None:
        """A second suspect came: ask for nothing for a while, or the two would come again and again."""
        self._careful = 0
        self._aim()
        self._try_later()

    def _feel_the_way(self, lease: NATSLease) -> None:
        """What came while there may be more suspects: if it is none, ask for twice as many."""
        assert self._careful is not None
        if lease.suspect:
            self._try_later()
        elif self._careful:
            self._careful *= 2
            self._pause = _FIRST_PAUSE
            self._aim()

    def _try_later(self) -> None:
        if self._resume is None and not self._left:
            self._resume = self.loop.call_later(self._pause, self._take_one_more)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _take_one_more(self) -> None:
        self._resume = None
        self._careful = self._taken + 1
        self._aim()

    def _go_on(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._careful = None
        self._pause = _FIRST_PAUSE

    # Inside

    def _gone(self, lease: NATSLease, *, held: bool) -> None:
        """It takes up no room any more."""
        self._taken -= 1
        self._held -= held
        if lease.suspect:
            self._suspects -= 1
            if self._careful is not None:
                self._pause = _FIRST_PAUSE
                if self._resume is not None:
                    self._resume.cancel()
                self._resume = self.loop.call_soon(self._take_one_more)
        self._aim()
        if self._buffer:
            self._receivers.wake()

    def _return(self, lease: NATSLease) -> None:
        """Give back what nobody has seen."""
        self._gone(lease, held=False)
        lease.give_back(lease.received)

    def _let_go(self, lease: NATSLease) -> None:
        """It is not held any more, one way or the other."""
        now = self.loop.time()
        if lease.unsure or now > lease.deadline:  # perhaps it is settled, or is somebody else's: the server knows
            self.settled(lease)
            return
        received = lease.received
        if lease.stage is Stage.HELD and lease.until <= now:
            received = replace(received, attempts=lease.attempt, lost=received.lost + 1)
        self._gone(lease, held=lease.stage is not Stage.WAITING)
        lease.give_back(received)

    def _on_lapse(self) -> None:
        self._lapse = None
        now = self.loop.time()
        held = [lease for lease in self._leases if lease.stage is Stage.HELD]
        for lease in held:
            if lease.until <= now:
                self._let_go(lease)
        later = [lease for lease in held if lease.until > now]
        if later:
            self.watch(min(later, key=lambda lease: lease.until))

    def _on_keep(self) -> None:
        """Tell the server that work goes on, where it would not wait as long as whoever works has asked for."""
        self._keep = None
        now, wait = self.loop.time(), self.place.wait
        soon = now + 2 * wait / _KEPT
        going = False
        connection = self.link.current
        for lease in self._leases:
            if lease.stage not in {Stage.HELD, Stage.SETTLING} or now > lease.deadline:
                continue
            if self._outlasts(lease):
                going = True
                if lease.deadline < soon and connection is not None:
                    connection.publish(lease.reply, PROGRESS)
                    lease.deadline = now + wait
        if going:
            self._keep = self.loop.call_later(wait / _KEPT, self._on_keep)

    def _outlasts(self, lease: NATSLease) -> bool:
        """Whether it was extended by more than the server waits by itself."""
        return lease.until > lease.deadline - self.place.wait / 10

    def _on_tidy(self) -> None:
        """What lay here for long goes back, and nothing more is taken before somebody asks."""
        self._tidy = None
        now = self.loop.time()
        if self._buffer and self._buffer[0].arrived + self._stale <= now:
            self._active = False
            self._intake.withdraw()
        while self._buffer and self._buffer[0].arrived + self._stale <= now:
            self._return(self._buffer.popleft())
        if self._buffer:
            self._tidy = self.loop.call_at(self._buffer[0].arrived + self._stale, self._on_tidy)

    async def _ask_why(
        self, future: Future[None], lease: NATSLease, problem: TransportError | None, *, settles: bool
    ) -> None:
        """Nobody heard of an acknowledgement: the queue or its consumer is gone, or there is no connection."""
        lost = False
        if problem is None:
            try:
                await self._queues.jetstream.consumer(self.place.stream, consumer_of(lease.reply))
                problem = ConnectionLostError(f"{self.link.address.shown}: nobody hears acknowledgements at the moment")
            except RefusedError as error:
                lost = True
                problem = LeaseLostError(self.name, lease.message.id)
                if error.refusal.err_code != CONSUMER_NOT_FOUND:
                    problem = QueueNotFoundError(self.name)
            except TransportError as error:
                problem = error
        if lost:
            self.settled(lease)
        elif settles:
            self.unsettled(lease)
        if not future.done():
            future.set_exception(problem)
            future.exception()

    async def _leave(self) -> None:
        self._active = False
        self._turns.over(self._begin_turn)
        for handle in (self._lapse, self._tidy, self._keep, self._resume):
            if handle is not None:
                handle.cancel()
        self._receivers.fail(TransportClosedError)
        await self._intake.stop()
        if self._mover is not None:
            await self._mover.stop()
        self._buffer.clear()
        for lease in list(self._leases):
            if lease.stage in {Stage.WAITING, Stage.HELD}:
                self._let_go(lease)
        while self._leases:
            self._settled = self.loop.create_future()
            await self._settled
        await asyncio.gather(*self._asking, return_exceptions=True)
