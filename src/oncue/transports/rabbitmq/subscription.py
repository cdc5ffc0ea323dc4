"""Subscriptions: they take messages ahead as there is room, hand them out, and watch over the time of those that are held."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future, Handle, TimerHandle
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from oncue.core.errors import TransportClosedError, TransportError, again
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_prefetch
from oncue.transports.rabbitmq.amqp import Delivery
from oncue.transports.rabbitmq.codec import decode
from oncue.transports.rabbitmq.intake import Intake
from oncue.transports.rabbitmq.lease import RabbitMQLease
from oncue.transports.receivers import Receivers
from oncue.transports.stages import Stage

if TYPE_CHECKING:
    from oncue.transports.rabbitmq.desk import Desk

_log = logging.getLogger("oncue.transports.rabbitmq")

_UNWRITTEN = 5
"""So many returns are left to the server to count; it may have a limit on them."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds for which nothing is taken after a second suspect came. They double."""


class RabbitMQSubscription:
    """Messages of one queue. It takes them from the first `receive` on, until nobody has asked for half a lease."""

    def __init__(self, desk: Desk, check_open: Callable[[], None], spec: QueueSpec, prefetch: int) -> None:
        self.desk = desk
        self.spec = spec
        self.name = spec.name
        self.loop = asyncio.get_running_loop()
        self._check_transport = check_open
        self._prefetch = check_prefetch(prefetch)
        self._intake = Intake(desk.consuming, spec.name, self._arrived, self._adjusted, self._ended)
        self._stale = min(spec.lease, desk.address.longest_hold) / 2
        self._receivers = Receivers(lambda: min(len(self._buffer), self._prefetch - self._held))
        self._buffer: deque[RabbitMQLease] = deque()
        self._leases: dict[RabbitMQLease, None] = {}  # whatever the server takes for ours
        self._returns: list[RabbitMQLease] = []  # what is to go back when nothing of it can come to us
        self._held = 0
        self._suspects = 0  # of those that are held or wait
        self._careful: int | None = None  # while there are suspects, no more than so many are taken
        self._pause = _FIRST_PAUSE
        self._resume: Handle | None = None
        self._lapse: TimerHandle | None = None
        self._tidy: TimerHandle | None = None
        self._active = False
        self._left = False
        self._leaving: asyncio.Task[None] | None = None
        self._settled: Future[None] | None = None

    # For those who receive

    async def receive(self) -> RabbitMQLease:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self.check_open()
            if self._buffer and self._held < self._prefetch:
                lease = self._buffer.popleft()
                self._held += 1
                lease.hand_out(self.loop.time())
                return lease
            if not self._active:
                self._active = True
                self._aim()
            await self._receivers.wait()

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        if not self._left:
            self._aim()
            self._trim()
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

    def settled(self, lease: RabbitMQLease) -> bool:
        """Have it acknowledged; False if it is not ours any more."""
        if not self._drop(lease):
            return False
        self._intake.ack(lease.delivery.tag)
        return True

    def requeue(self, lease: RabbitMQLease, why: object = None) -> None:
        """Have it go back to the queue, counted."""
        if self._drop(lease):
            if why is not None:
                _log.warning("a message of queue %r was counted as lost, and was not: %s", self.name, why)
            self._intake.requeue(lease.delivery.tag)

    def unsettled(self, lease: RabbitMQLease) -> None:
        """What was to be sent with it was not stored: it is held as before."""
        if lease.stage is Stage.SETTLING:
            lease.stage = Stage.HELD
            if self._left:
                lease.give_back(lease.received)
            else:
                self.watch(lease.until)

    def watch(self, until: float) -> None:
        """A lease may run out then."""
        if self._lapse is None or until < self._lapse.when():
            if self._lapse is not None:
                self._lapse.cancel()
            self._lapse = self.loop.call_at(until, self._on_lapse)

    # What comes

    def _arrived(self, delivery: Delivery) -> None:
        received = decode(delivery)
        unwritten = received.returned
        if delivery.redelivered and not unwritten:  # queues that do not count say no more than this
            received = replace(received, attempts=received.attempts + 1, lost=received.lost + 1)
            unwritten = _UNWRITTEN
        lease = RabbitMQLease(self, delivery, received, self.loop.time())
        self._leases[lease] = None
        if unwritten >= _UNWRITTEN:
            lease.give_back(received)
        elif not self._active:
            self._return(lease)
        elif lease.suspect and self._suspects:
            self._hold_off()
            self._return(lease)
        else:
            self._suspects += lease.suspect
            self._buffer.append(lease)
            if self._careful is not None:
                self._feel_the_way(lease)
            self._trim()
            self._receivers.wake()
            if self._tidy is None:
                self._tidy = self.loop.call_later(self._stale, self._on_tidy)

    def _adjusted(self) -> None:
        returns, self._returns = self._returns, []
        for lease in returns:
            if lease.stage is Stage.RETURNING:
                lease.give_back(lease.received)

    def _ended(self, error: TransportError) -> None:
        """Everything that came by the channel is somebody else's."""
        for lease in self._leases:
            lease.stage = Stage.OVER
        self._leases.clear()
        self._buffer.clear()
        self._returns.clear()
        self._held = self._suspects = 0
        self._go_on()
        self._active = False
        self._receivers.fail(lambda: again(error))
        self._look_settled()

    # Suspects

    def _hold_off(self) -> None:
        """A second suspect came: take nothing for a while, or the two would come again and again."""
        self._careful = 0
        self._aim()
        self._try_later()

    def _feel_the_way(self, lease: RabbitMQLease) -> None:
        """What came while there may be suspects: behind one there may be others, behind others there is none."""
        assert self._careful is not None
        if lease.suspect:
            self._try_later()
        elif self._careful:
            self._careful *= 2
            self._pause = _FIRST_PAUSE
            self._aim()

    def _try_later(self) -> None:
        if self._resume is None:
            self._resume = self.loop.call_later(self._pause, self._take_one_more)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _take_one_more(self) -> None:
        self._resume = None
        self._careful = self._held + len(self._buffer) + 1
        self._aim()

    def _go_on(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._careful = None
        self._pause = _FIRST_PAUSE

    # Inside

    def _aim(self) -> None:
        """Take as many as there is room for."""
        if self._careful is not None and self._careful >= self._prefetch:
            self._go_on()
        limit = self._prefetch if self._careful is None else self._careful
        self._intake.aim(limit if self._active else 0)

    def _drop(self, lease: RabbitMQLease) -> bool:
        """It is over here; False if it was already."""
        stage, lease.stage = lease.stage, Stage.OVER
        if lease not in self._leases:
            return False
        del self._leases[lease]
        if stage is Stage.HELD or stage is Stage.SETTLING:
            self._held -= 1
            self._gone(lease)
        self._look_settled()
        self._receivers.wake()
        return True

    def _gone(self, lease: RabbitMQLease) -> None:
        if lease.suspect:
            self._suspects -= 1
            if self._careful is not None:
                self._pause = _FIRST_PAUSE
                if self._resume is not None:
                    self._resume.cancel()
                self._resume = self.loop.call_soon(self._take_one_more)

    def _return(self, lease: RabbitMQLease) -> None:
        """Give back what nobody has seen, once it does not come to us again at once."""
        lease.stage = Stage.RETURNING
        self._intake.disown(lease.delivery.tag)
        if self._intake.adjusting:
            self._returns.append(lease)
        else:
            lease.give_back(lease.received)

    def _trim(self) -> None:
        while self._buffer and self._held + len(self._buffer) > self._prefetch:
            lease = self._buffer.pop()
            self._gone(lease)
            self._return(lease)

    def _on_lapse(self) -> None:
        self._lapse = None
        now = self.loop.time()
        held = [lease for lease in self._leases if lease.stage is Stage.HELD]
        for lease in held:
            if lease.until <= now:
                self.requeue(lease)
        later = [lease.until for lease in held if lease.until > now]
        if later:
            self.watch(min(later))

    def _on_tidy(self) -> None:
        """What lay here for long goes back, and nothing more is taken before somebody asks."""
        self._tidy = None
        now = self.loop.time()
        if self._buffer and self._buffer[0].arrived + self._stale <= now:
            self._active = False
            self._aim()
        while self._buffer and self._buffer[0].arrived + self._stale <= now:
            lease = self._buffer.popleft()
            self._gone(lease)
            self._return(lease)
        if self._buffer:
            self._tidy = self.loop.call_at(self._buffer[0].arrived + self._stale, self._on_tidy)

    async def _leave(self) -> None:
        self._active = False
        for handle in (self._resume, self._lapse, self._tidy):
            if handle is not None:
                handle.cancel()
        self._receivers.fail(TransportClosedError)
        await self._intake.stop()
        now = self.loop.time()
        self._buffer.clear()
        for lease in list(self._leases):
            if lease.until <= now and lease.stage is Stage.HELD:
                self.requeue(lease)
            elif lease.stage in {Stage.WAITING, Stage.HELD}:
                lease.give_back(lease.received)
        while self._leases:
            self._settled = self.loop.create_future()
            await self._settled
        await self._intake.close()

    def _look_settled(self) -> None:
        if not self._leases and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
