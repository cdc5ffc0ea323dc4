"""The loop from lease to outcome: receives messages of one queue, calls the handler with each, has the outcome settled.

It bounds how much runs at once, keeps leases alive while handlers run, sits out a broker that is away, and ends in order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from asyncio import Task
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    QueueMismatchError,
    QueueNotFoundError,
    TransportError,
)
from oncue.core.failure import CRASH_ERROR, PROCESSING_ERROR, Failure
from oncue.core.outcome import Dead, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.dead import dead_queue_name, is_dead_queue
from oncue.events import BrokerBack, BrokerLost, LoopBlocked, MessageStarted, PumpStarted, PumpStopped, PumpStopping
from oncue.health import Health, Pulse
from oncue.middleware import Handler
from oncue.room import Room
from oncue.session import Session, Slot
from oncue.settle import Settlement
from oncue.stop import Stop, cancel, happens, report, uncancel, unless, within_grace
from oncue.transports.base import Lease, QueueSpec, Subscription

__all__ = ["Pump", "Stop"]

_log = logging.getLogger("oncue.pump")

_AHEAD = 128
"""How many messages may wait for their commit while others are handled already."""
_FIRST_SLOTS = 4
_QUICK, _SLOW = 0.002, 0.02
"""Seconds a handler takes on average: below the first, messages are fetched ahead of it; above the second, not any more,
because they would wait here while another process is idle, and come late if this one dies."""
_SAFE_ATTEMPTS = 3
"""What is fetched ahead counts an attempt when the process dies; after two such deaths transports hand a message out alone.
With fewer attempts than this, messages that were never begun could be given up for the one that killed the process."""
_STALL = 0.5
"""Seconds without a message after which what was fetched ahead is given back: a handler turned out to be slow."""
_TICK = 5.0
"""Seconds between looks at a loop that has nothing to do."""
_CALM = 5.0
"""Seconds without trouble after which a broker counts as back, if no message came sooner."""
_LAST_WORDS = 5.0
"""Seconds that cancelled handlers and their releases get at the very end, and the end of a subscription."""

_BACK_OFF = RetryPolicy(max_attempts=1, base=0.1, factor=2.0, cap=15.0)
_AWAY = (ConnectionLostError, QueueNotFoundError)
"""What is waited out: a queue that was deleted is made again."""

Result = TypeVar("Result")


class Pump:
    """Takes the messages of one queue to a handler, at most `concurrency` of them at the same time."""

    def __init__(
        self,
        spec: QueueSpec,
        settlement: Settlement,
        handler: Handler,
        *,
        concurrency: int,
        ahead: int = 0,
        pulse: Pulse | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`ahead` is how many messages more a handler is given while it is quick, because it queues them by itself."""
        self.queue = spec.name
        self._spec = spec
        self._settlement = settlement
        self._transport = settlement.transport
        self._handler = handler
        self._events = settlement.events
        self._concurrency = concurrency
        self._ahead = min(ahead, _AHEAD)
        self._handling = 0
        self._pulse = pulse or Health().pulse(spec.name)
        self._clock = clock
        self._room = Room(concurrency)
        self._average = _QUICK
        self._released = 0
        self._finished = 0
        self._session: Session | None = None
        self._main: Task[None] | None = None
        self._abandoned: set[Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """How many messages are received and not settled yet."""
        return self._session.in_flight if self._session is not None else 0

    def resize(self, concurrency: int, ahead: int = 0) -> None:
        """Work on so many messages at the same time from now on. Those in work beyond that are finished, and none begun until then."""
        if (concurrency, ahead) == (self._concurrency, self._ahead):
            return
        self._concurrency, self._ahead = concurrency, min(ahead, _AHEAD)
        self._room.resize(concurrency)
        session = self._session
        if session is not None and not session.stopping:
            self._fill(session)
            self._fetch(session, ahead=session.ahead.is_set())

    async def run(self, stop: Stop) -> None:
        """Make the queue and its dead queue where they are missing, then work until `stop` says so.

        A broker that is away is waited for. Raise a `TransportError` that waiting does not mend, such as
        `QueueMismatchError`. Cancelling it is the same as `stop.now()`, however often: messages are given back before it
        ends, which takes some seconds at most.
        """
        work = self._main = asyncio.create_task(self._run(stop))
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
                stop.now()
        if cancelled is not None:
            raise cancelled from (None if work.cancelled() else work.exception())
        work.result()

    # Beginning and ending

    async def _run(self, stop: Stop) -> None:
        started = False
        try:
            while not stop.requested:
                prefetch = self._concurrency
                entered = await unless(stop, self._connect())
                if entered is None:
                    return
                if not started:
                    started = True
                    if self._events:
                        self._events.emit(PumpStarted(self.queue, self._concurrency))
                context, subscription = entered
                session = Session(subscription)
                if prefetch != self._concurrency:
                    self._fetch(session, ahead=False)
                try:
                    await self._consume(session, stop)
                finally:
                    await self._leave(context)
        finally:
            self._pulse.end()
            if started and self._events:
                self._events.emit(PumpStopped(self.queue, self._finished, self._released))

    async def _connect(self) -> tuple[AbstractAsyncContextManager[Subscription], Subscription]:
        """Declare the queues and subscribe, however long the broker is away."""
        try:
            await self._declare()
            entered = await self._subscribe()
        except _AWAY as error:
            self._pulse.lost(str(error))
            entered = await self._recover(error, self._subscribe)
        self._pulse.beat()
        return entered

    async def _declare(self) -> None:
        await self._transport.declare(self._spec)
        if not is_dead_queue(self.queue):
            try:
                await self._transport.declare(QueueSpec(name=dead_queue_name(self.queue)))
            except QueueMismatchError:
                _log.debug("the dead queue of %s has settings of its own, which is all right", self.queue)

    async def _subscribe(self) -> tuple[AbstractAsyncContextManager[Subscription], Subscription]:
        context = self._transport.subscribe(self.queue, prefetch=self._concurrency)
        return context, await context.__aenter__()

    async def _leave(self, context: AbstractAsyncContextManager[Subscription]) -> None:
        """End the subscription, which gives back what it holds. A broker that is away must not keep anybody from ending."""
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await context.__aexit__(None, None, None)
        except (TimeoutError, TransportError) as error:
            reason = str(error) or "no answer"
            _log.warning("leases of queue %s could not be given back and will run out: %s", self.queue, reason)

    async def _consume(self, session: Session, stop: Stop) -> None:
        """Work until told to stop, or until the subscription turns out to be stuck while nothing is in flight."""
        self._session = session
        self._fill(session)
        works = [self._keep_leases(session), self._watch(session), self._give_back_when_stalled(session), stop.wait()]
        beside = [session.begin(work) for work in works]
        try:
            ended = await session.first_end
        except asyncio.CancelledError:
            stop.now()
            raise
        finally:
            try:
                await self._wind_down(session, stop)
            finally:
                await self._end([*beside, *session.tasks])
        if not ended.cancelled():
            ended.result()
        elif not stop.requested:
            raise RuntimeError(f"a task of the pump of queue {self.queue!r} was cancelled from outside")

    def _fill(self, session: Session) -> None:
        """Have slots for what comes next, up to as many as messages may be in work and waiting for their commit.

        Twice as many each time that none was idle, so that a queue with little to do costs little.
        """
        if session.idle:
            return
        room = self._concurrency + _AHEAD - len(session.slots)
        for _ in range(min(room, max(_FIRST_SLOTS, len(session.slots)))):
            slot = Slot()
            slot.task = session.begin(self._work(session, slot))
            session.slots.append(slot)
            session.idle += 1

    async def _wind_down(self, session: Session, stop: Stop) -> None:
        """Let what is in flight finish while the grace period lasts, and have the rest given back."""
        session.stopping = True
        busy = []
        for slot in session.slots:
            if slot.lease is None:
                slot.task.cancel()
            elif not slot.task.done():
                busy.append(slot.task)
        if stop.requested and self._events:
            self._events.emit(PumpStopping(self.queue, len(busy)))
        if busy and stop.requested:
            await within_grace(busy, stop)
        session.aborting = True
        for slot in session.slots:
            if slot.handling:
                slot.task.cancel()
        if busy:
            _, late = await asyncio.wait(busy, timeout=_LAST_WORDS)
            if late:
                _log.warning(
                    "%d messages of queue %s could not be given back and will come again", len(late), self.queue
                )

    async def _end(self, tasks: Sequence[Task[None]]) -> None:
        """Cancel what is left. A handler that refuses to end keeps its place among the `concurrency`, but nobody waiting."""
        left = await cancel(tasks)
        for task in left:
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            task.add_done_callback(report)

    # One message after the other

    async def _work(self, session: Session, slot: Slot) -> None:
        settle = self._settlement.settle
        while not session.stopping:
            await self._room.enter()
            try:
                lease = slot.lease = await self._receive(session)
                session.idle -= 1
                self._fill(session)
                started = self._clock()
                slot.handling = True
                self._handling += 1
                try:
                    outcome = await self._handle(session, lease)
                finally:
                    self._handling -= 1
                slot.handling = False
                seconds = self._clock() - started
            finally:
                self._room.leave()
            self._adapt(session, seconds)
            settled = await settle(lease, outcome, seconds)
            slot.lease = None
            session.idle += 1
            self._count(session, settled)

    def _count(self, session: Session, settled: Outcome | None) -> None:
        if isinstance(settled, Release):
            self._released += 1
        elif session.stopping and settled is not None:
            self._finished += 1

    async def _receive(self, session: Session) -> Lease:
        """The next lease. Safe to cancel, as `Subscription.receive` is."""
        while True:
            if session.trouble is not None:
                await session.calm.wait()
            try:
                lease = await session.subscription.receive()
            except _AWAY as error:
                self._worry(session, error)
            else:
                session.received += 1
                if session.trouble is None:
                    self._pulse.beat()
                else:
                    session.news.set()
                return lease

    async def _handle(self, session: Session, lease: Lease) -> Outcome:
        attempt = lease.attempt
        if attempt > self._settlement.retry.max_attempts:
            return Dead(_crash(attempt - 1))
        if self._events:
            self._events.emit(MessageStarted(self.queue, lease.message.id, attempt))
        try:
            outcome = await self._handler(lease.message, attempt)
        except asyncio.CancelledError as error:
            # Cancelled by us, or by whoever ends the whole program; else it is an error like any other, which leaked out
            # of something that the handler waited for.
            ours = session.aborting or (self._main is not None and self._main.cancelling())
            outcome = Release() if ours else Retry(Failure.from_exception(error, code=PROCESSING_ERROR))
            uncancel()
        except (Exception, SystemExit) as error:  # a fault of ours: no worse for the message than one of the user's
            _log.exception("a handler of queue %s failed outside of the user's code", self.queue)
            outcome = Retry(Failure.from_exception(error, code=PROCESSING_ERROR))
        if session.aborting:
            uncancel()  # the handler may have swallowed it; settling is not what was meant to be cancelled
        return outcome

    def _adapt(self, session: Session, seconds: float) -> None:
        """Fetch ahead of quick handlers, whose messages would else wait for one commit each, and not of slow ones."""
        if self._ahead:  # then part of the time is spent in the queue of the handler
            seconds *= self._concurrency / max(self._concurrency, self._handling + 1)
        self._average += (seconds - self._average) / 16
        if session.ahead.is_set():
            if self._average > _SLOW:
                self._fetch(session, ahead=False)
        elif self._average < _QUICK and self._settlement.retry.max_attempts >= _SAFE_ATTEMPTS:
            self._fetch(session, ahead=True)

    def _fetch(self, session: Session, *, ahead: bool) -> None:
        session.fetch(self._concurrency + (_AHEAD if ahead else 0), ahead=ahead)
        self._room.resize(self._concurrency + (self._ahead if ahead else 0))

    # What goes on beside the messages

    async def _keep_leases(self, session: Session) -> None:
        """Extend what is held at a third of the lease, outside of users' code."""
        pause = self._spec.lease / 3
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + pause
            before = session.in_flight
            await asyncio.sleep(pause)
            late = loop.time() - due
            if (before or session.in_flight) and late > self._spec.lease / 3 and self._events:
                self._events.emit(LoopBlocked(self.queue, late))
            held = [slot.lease for slot in session.slots if slot.lease is not None]
            extended = await self._extend(held)
            pause = self._spec.lease / (3 if extended else 9)
            if held and extended and session.trouble is None:
                self._pulse.beat()

    async def _extend(self, held: Sequence[Lease]) -> bool:
        """Extend all, and wait no longer than can be made up for; whether there was an answer for each."""
        seconds = self._spec.lease
        try:
            async with asyncio.timeout(seconds / 6):
                results = await asyncio.gather(*(lease.extend(seconds) for lease in held), return_exceptions=True)
        except TimeoutError:
            return False
        for result in results:
            # What is being settled, or ran out, is noticed by the one who settles it.
            if isinstance(result, BaseException) and not isinstance(result, (*_AWAY, LeaseLostError)):
                raise result
        return not any(isinstance(result, ConnectionLostError) for result in results)

    async def _watch(self, session: Session) -> None:
        """Sit out trouble, and look after a loop that gets nothing; return when its subscription seems to be stuck."""
        suspicious = 0
        while suspicious < 2:
            received = session.received
            if session.trouble is None:
                await happens(session.news, _TICK)
            if session.trouble is not None:
                await self._recover(session.trouble, lambda: self._stays_calm(session))
                session.trouble = None
            waiting = await self._probe(session)
            idle = session.received == received and not session.in_flight
            suspicious = suspicious + 1 if waiting and idle else 0
        _log.info("queue %s has messages but none arrived: subscribing anew", self.queue)

    async def _probe(self, session: Session) -> bool:
        """Make a round trip; whether there are messages that somebody should be given."""
        session.news.clear()
        try:
            depth = await self._transport.depth(self.queue)
        except _AWAY as error:
            self._worry(session, error)
            return False
        if session.trouble is None:
            self._pulse.beat()
        return bool(depth.ready) and not self._spec.fifo

    def _worry(self, session: Session, error: TransportError) -> None:
        """Let nobody receive until `_watch` has made sure that the broker and the queue are there."""
        session.calm.clear()
        session.trouble = error
        session.news.set()
        self._pulse.lost(str(error))

    async def _recover(self, error: TransportError, mend: Callable[[], Awaitable[Result | None]]) -> Result:
        """Ask again with growing pauses until the queues are declared and `mend` brings a result."""
        lost = self._clock()
        if self._events:
            self._events.emit(BrokerLost(self.queue, str(error)))
        tries = 0
        while True:
            tries += 1
            await asyncio.sleep(_BACK_OFF.backoff(tries) * random.uniform(0.5, 1.0))
            try:
                await self._declare()
                mended = await mend()
            except _AWAY as again:
                self._pulse.lost(str(again))
                continue
            if mended is not None:
                break
        if self._events:
            self._events.emit(BrokerBack(self.queue, self._clock() - lost))
        return mended

    async def _stays_calm(self, session: Session) -> bool | None:
        """Let receive again; True when a message came or nothing happened for a while, None when there was trouble."""
        session.news.clear()
        session.calm.set()
        await happens(session.news, _CALM)
        return session.calm.is_set() or None

    async def _give_back_when_stalled(self, session: Session) -> None:
        """End fetching ahead when nothing is taken of it any more: the handlers that run now are slow, or there is no work."""
        while True:
            await session.ahead.wait()
            received = session.received
            await asyncio.sleep(_STALL)
            if session.received == received and session.ahead.is_set():
                self._fetch(session, ahead=False)


def _crash(attempts: int) -> Failure:
    return Failure(
        CRASH_ERROR,
        "AttemptsExhausted",
        f"{attempts} attempts began and none was settled: the worker died, was frozen, or lost its lease each time",
        final=True,
    )
