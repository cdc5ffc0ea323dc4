"""The loop from lease to outcome: receives messages of one queue, calls the handler with each, has the outcome settled.

It bounds how much runs at once, keeps leases alive while handlers run, sits out a broker that is away, and ends in order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from asyncio import Task
from collections.abc import Sequence

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError, TransportError
from oncue.core.failure import CRASH_ERROR, PROCESSING_ERROR, Failure
from oncue.core.outcome import Dead, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.dead import dead_queue_name, is_dead_queue
from oncue.events import BrokerBack, BrokerLost, LoopBlocked, MessageStarted, PumpStarted, PumpStopped, PumpStopping
from oncue.health import Health, Pulse
from oncue.middleware import Handler
from oncue.settle import Settlement
from oncue.transports.base import Lease, QueueSpec, Subscription

_log = logging.getLogger("oncue.pump")

_AHEAD = 128
"""How many messages may wait for their commit while others are handled already."""
_QUICK, _SLOW = 0.02, 0.1
"""Seconds a handler takes on average: below the first, messages are fetched ahead of it; above the second, not any more,
because they would wait here while another process is idle."""
_TICK = 5.0
"""Seconds between looks at a loop that has nothing to do."""
_CALM = 5.0
"""Seconds without trouble after which a broker counts as back, if no message came sooner."""
_LAST_WORDS = 5.0
"""Seconds that cancelled handlers and their releases get at the very end."""

_BACK_OFF = RetryPolicy(max_attempts=1, base=0.1, factor=2.0, cap=15.0)


class Stop:
    """Tells pumps to end; one object may serve all pumps of a process. Its methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._forced = asyncio.Event()
        self._deadline = 0.0

    @property
    def requested(self) -> bool:
        """Whether the pumps were told to end, in either way."""
        return self._asked.is_set()

    def gently(self, grace: float) -> None:
        """Take no more messages; handlers that run may finish for `grace` seconds. Said again, the first time counts."""
        if not self._asked.is_set():
            self._deadline = asyncio.get_running_loop().time() + grace
            self._asked.set()

    def now(self) -> None:
        """Cancel the handlers that run and give their messages back."""
        self._asked.set()
        self._forced.set()

    async def wait(self) -> None:
        """Return when the pumps are to end."""
        await self._asked.wait()

    async def wait_forced(self) -> None:
        """Return when the grace period is over, or at once after `now`."""
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._forced.wait()
        except TimeoutError:
            return


class _Slot:
    """One of the coroutines that each take a message through all its stages."""

    __slots__ = ("handling", "lease", "task")

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.handling = False
        self.task: Task[None]


class Pump:
    """Takes the messages of one queue to a handler, at most `concurrency` of them at the same time."""

    def __init__(
        self,
        spec: QueueSpec,
        settlement: Settlement,
        handler: Handler,
        *,
        concurrency: int,
        pulse: Pulse | None = None,
    ) -> None:
        self.queue = spec.name
        self._spec = spec
        self._settlement = settlement
        self._transport = settlement.transport
        self._handler = handler
        self._events = settlement.events
        self._concurrency = concurrency
        self._pulse = pulse or Health().pulse(spec.name)
        self._room = asyncio.Semaphore(concurrency)
        self._slots: Sequence[_Slot] = ()
        self._eager = False
        self._average = _QUICK
        self._received = 0
        self._released = 0
        self._finished = 0
        self._stopping = False
        self._aborting = False
        self._calm = asyncio.Event()
        self._calm.set()
        self._trouble: TransportError | None = None
        self._news = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """How many messages are received and not settled yet."""
        return sum(slot.lease is not None for slot in self._slots)

    async def run(self, stop: Stop) -> None:
        """Make the queue and its dead queue where they are missing, then work until `stop` says so.

        A broker that is away is waited for. Raise a `TransportError` that waiting does not mend, such as
        `QueueMismatchError`. Cancelling it is the same as `stop.now()`: messages are given back before it ends.
        """
        try:
            if not await self._prepare(stop):
                return
            if self._events:
                self._events.emit(PumpStarted(self.queue, self._concurrency))
            while not stop.requested:
                async with self._transport.subscribe(self.queue, prefetch=self._concurrency) as subscription:
                    await self._consume(subscription, stop)
            if self._events:
                self._events.emit(PumpStopped(self.queue, self._finished, self._released))
        finally:
            self._pulse.end()

    # Beginning and ending

    async def _prepare(self, stop: Stop) -> bool:
        """Declare the queues, however long the broker is away; False if told to stop before that."""
        declaring = asyncio.create_task(self._until_declared())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([declaring, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not declaring.done():
                return False
            declaring.result()
            return True
        finally:
            await _cancel([declaring, stopped])

    async def _until_declared(self) -> None:
        try:
            await self._declare()
        except ConnectionLostError as error:
            self._worry(error)
            await self._recover(error)

    async def _declare(self) -> None:
        await self._transport.declare(self._spec)
        if not is_dead_queue(self.queue):
            await self._transport.declare(QueueSpec(name=dead_queue_name(self.queue)))
        self._pulse.beat()

    async def _consume(self, subscription: Subscription, stop: Stop) -> None:
        """Work until told to stop, or until the subscription turns out to be stuck while nothing is in flight."""
        self._eager = False
        self._slots = [_Slot() for _ in range(self._concurrency + _AHEAD)]
        for slot in self._slots:
            slot.task = asyncio.create_task(self._work(subscription, slot))
        keeper = asyncio.create_task(self._keep_leases())
        watch = asyncio.create_task(self._watch())
        stopped = asyncio.create_task(stop.wait())
        tasks = [keeper, watch, stopped, *(slot.task for slot in self._slots)]
        ended: set[Task[None]] = set()
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stop.now()
            raise
        finally:
            await self._wind_down(stop)
            await _cancel(tasks)
        for task in ended:
            task.result()

    async def _wind_down(self, stop: Stop) -> None:
        """Let what is in flight finish while the grace period lasts, and have the rest given back."""
        self._stopping = True
        busy = []
        for slot in self._slots:
            if slot.lease is None:
                slot.task.cancel()
            elif not slot.task.done():
                busy.append(slot.task)
        if stop.requested and self._events:
            self._events.emit(PumpStopping(self.queue, len(busy)))
        if busy and stop.requested:
            forced = asyncio.create_task(stop.wait_forced())
            finished = asyncio.create_task(_all_done(busy))
            await asyncio.wait([forced, finished], return_when=asyncio.FIRST_COMPLETED)
            await _cancel([forced, finished])
        self._aborting = True
        for slot in self._slots:
            if slot.handling:
                slot.task.cancel()
        if busy:
            _, late = await asyncio.wait(busy, timeout=_LAST_WORDS)
            if late:
                _log.warning(
                    "%d messages of queue %s could not be given back and will come again", len(late), self.queue
                )
        self._stopping = self._aborting = False

    # One message after the other

    async def _work(self, subscription: Subscription, slot: _Slot) -> None:
        settle = self._settlement.settle
        while not self._stopping:
            async with self._room:
                lease = slot.lease = await self._receive(subscription)
                started = time.perf_counter()
                slot.handling = True
                outcome = await self._handle(lease)
                slot.handling = False
                seconds = time.perf_counter() - started
            self._adapt(subscription, seconds)
            settled = await settle(lease, outcome, seconds)
            slot.lease = None
            self._count(settled)

    def _count(self, settled: Outcome | None) -> None:
        if isinstance(settled, Release):
            self._released += 1
        elif self._stopping:
            self._finished += 1

    async def _receive(self, subscription: Subscription) -> Lease:
        """The next lease. Safe to cancel, as `Subscription.receive` is."""
        while True:
            if not self._calm.is_set():
                await self._calm.wait()
            try:
                lease = await subscription.receive()
            except (ConnectionLostError, QueueNotFoundError) as error:
                self._worry(error)
            else:
                self._received += 1
                self._pulse.beat()
                if self._trouble is not None:
                    self._news.set()
                return lease

    async def _handle(self, lease: Lease) -> Outcome:
        attempt = lease.attempt
        if attempt > self._settlement.retry.max_attempts:
            return Dead(_crash(attempt - 1))
        if self._events:
            self._events.emit(MessageStarted(self.queue, lease.message.id, attempt))
        try:
            return await self._handler(lease.message, attempt)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._aborting and task is not None:
                task.uncancel()
                return Release()
            return Retry(Failure.from_exception(error, code=PROCESSING_ERROR))
        except Exception as error:  # a fault of ours: the message must not suffer from it more than from a user's
            _log.exception("a handler of queue %s failed outside of the user's code", self.queue)
            return Retry(Failure.from_exception(error, code=PROCESSING_ERROR))

    def _adapt(self, subscription: Subscription, seconds: float) -> None:
        """Fetch ahead of quick handlers, whose messages would else wait for one commit each, and not of slow ones."""
        self._average += (seconds - self._average) / 16
        if self._eager:
            if self._average > _SLOW:
                self._eager = False
                subscription.resize(self._concurrency)
        elif self._average < _QUICK:
            self._eager = True
            subscription.resize(self._concurrency + _AHEAD)

    # What goes on beside the messages

    async def _keep_leases(self) -> None:
        """Extend what is held at a third of the lease, outside of users' code."""
        pause = self._spec.lease / 3
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + pause
            await asyncio.sleep(pause)
            held = [slot.lease for slot in self._slots if slot.lease is not None]
            late = loop.time() - due
            if held and late > self._spec.lease / 3 and self._events:
                self._events.emit(LoopBlocked(self.queue, late))
            results = await asyncio.gather(*(lease.extend(self._spec.lease) for lease in held), return_exceptions=True)
            failed = [result for result in results if isinstance(result, ConnectionLostError)]
            pause = self._spec.lease / (9 if failed else 3)
            if held and not failed:
                self._pulse.beat()
            for result in results:
                # What is being settled, or ran out, is noticed by the one who settles it.
                if isinstance(result, BaseException) and not isinstance(result, ConnectionLostError | LeaseLostError):
                    raise result

    async def _watch(self) -> None:
        """Sit out trouble, and look after a loop that gets nothing; return when its subscription seems to be stuck."""
        suspicious = 0
        while suspicious < 2:
            received = self._received
            self._news.clear()
            if self._trouble is None:
                try:
                    async with asyncio.timeout(_TICK):
                        await self._news.wait()
                except TimeoutError:
                    pass
            if self._trouble is not None:
                await self._recover(self._trouble)
            elif self._received != received or self.in_flight or self._stopping:
                suspicious = 0
                await self._probe()
            else:
                waiting = await self._probe()
                suspicious = suspicious + 1 if waiting and self._received == received else 0
        _log.info("queue %s has messages but none arrived: subscribing anew", self.queue)

    async def _probe(self) -> bool:
        """Make a round trip; whether there are messages that somebody should be given."""
        try:
            depth = await self._transport.depth(self.queue)
        except (ConnectionLostError, QueueNotFoundError) as error:
            self._worry(error)
            return False
        self._pulse.beat()
        return bool(depth.ready) and not self._spec.fifo

    def _worry(self, error: TransportError) -> None:
        """Let nobody receive until `_watch` has made sure that the broker and the queue are there."""
        self._calm.clear()
        self._trouble = error
        self._pulse.lost(str(error))
        self._news.set()

    async def _recover(self, error: TransportError) -> None:
        """Ask again with growing pauses; the trouble is over when a message came or nothing happened for a while."""
        lost = time.monotonic()
        if self._events:
            self._events.emit(BrokerLost(self.queue, str(error)))
        tries = 0
        while True:
            tries += 1
            await asyncio.sleep(_BACK_OFF.backoff(tries) * random.uniform(0.5, 1.0))
            try:
                await self._declare()
            except ConnectionLostError as again:
                self._pulse.lost(str(again))
                continue
            self._news.clear()
            self._calm.set()
            if not self._slots or await self._stays_calm():
                break
        self._trouble = None
        if self._events:
            self._events.emit(BrokerBack(self.queue, time.monotonic() - lost))

    async def _stays_calm(self) -> bool:
        try:
            async with asyncio.timeout(_CALM):
                await self._news.wait()
        except TimeoutError:
            return True
        return self._calm.is_set()


def _crash(attempts: int) -> Failure:
    return Failure(
        CRASH_ERROR,
        "AttemptsExhausted",
        f"{attempts} attempts began and none was settled: the worker died, was frozen, or lost its lease each time",
        final=True,
    )


async def _all_done(tasks: Sequence[Task[None]]) -> None:
    await asyncio.wait(tasks)


async def _cancel(tasks: Sequence[Task[None]]) -> None:
    """Cancel tasks and wait for their end, but not for ever: users' code may refuse to be cancelled."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=1.0)
