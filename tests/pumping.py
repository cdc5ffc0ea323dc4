"""What the tests of the pump share: a transport over memory that gets into trouble when told to, handlers that can be
held, events that can be waited for, and the promise that no task is left behind."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from oncue.core.message import Message, Send
from oncue.core.outcome import Done, Outcome
from oncue.core.retry import RetryPolicy
from oncue.events import Event, Events
from oncue.health import Health
from oncue.middleware import Handler
from oncue.pump import Pump, Stop
from oncue.settle import OnDead, Settlement, no_sends
from oncue.testing import run_in_virtual_time
from oncue.transports.base import Depth, Lease, QueueSpec, Transport
from oncue.transports.memory import MemoryStore, MemoryTransport
from oncue.transports.memory.subscription import MemorySubscription

AnEvent = TypeVar("AnEvent", bound=Event)


def in_virtual_time(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine function a test in virtual time, which also fails when a task or an error is left behind."""

    @functools.wraps(scenario)
    def test(**arguments: Any) -> None:
        run_in_virtual_time(leaving_nothing(scenario(**arguments)))

    return test


async def leaving_nothing(scenario: Coroutine[Any, Any, None]) -> None:
    """Run `scenario`; fail when it leaves a task, or an error that nobody asked for."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    async with asyncio.timeout(3 * 3600.0):
        await scenario
    left = asyncio.all_tasks() - {asyncio.current_task()}
    gc.collect()
    assert not left, left
    assert not troubles, troubles


def now() -> float:
    return asyncio.get_running_loop().time()


class Trouble:
    """What requests meet, by kind: declare, subscribe, receive, extend, settle, depth, leave; "" means each of them.

    `errors` are raised until they are taken out, those in `once` once each; what is in `hanging` never answers, and in
    `latency` are seconds before the answer. `calls` has the times of all requests.
    """

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.once: dict[str, deque[Exception]] = {}
        self.hanging: set[str] = set()
        self.latency: dict[str, float] = {}
        self.calls: dict[str, list[float]] = {}
        self.subscriptions: set[MemorySubscription] = set()
        self.prefetches: list[int] = []

    @property
    def counts(self) -> Counter[str]:
        return Counter({kind: len(times) for kind, times in self.calls.items()})

    def begin(self, error: Exception, *kinds: str) -> None:
        """From now on requests of these kinds, or all, fail; receivers that wait fail at once."""
        for kind in kinds or ("",):
            self.errors[kind] = error
        if not kinds or "receive" in kinds:
            self.wake(error)

    def wake(self, error: Exception) -> None:
        """Let receivers that wait fail once."""
        for subscription in self.subscriptions:
            subscription.fail(error)

    def end(self) -> None:
        self.errors.clear()

    async def meet(self, kind: str) -> None:
        self.calls.setdefault(kind, []).append(now())
        if kind in self.latency:
            await asyncio.sleep(self.latency[kind])
        if kind in self.hanging:
            await asyncio.Event().wait()
        for name in (kind, ""):
            if name in self.errors:
                raise self.errors[name]
        if self.once.get(kind):
            raise self.once[kind].popleft()


class TroubledLease:
    def __init__(self, lease: Lease, trouble: Trouble) -> None:
        self._lease = lease
        self._trouble = trouble
        self.message = lease.message
        self.attempt = lease.attempt

    async def ack(self, *sends: Send) -> None:
        await self._trouble.meet("settle")
        await self._lease.ack(*sends)

    async def nack(self, *, delay: float = 0.0) -> None:
        await self._trouble.meet("settle")
        await self._lease.nack(delay=delay)

    async def release(self) -> None:
        await self._trouble.meet("settle")
        await self._lease.release()

    async def extend(self, seconds: float) -> None:
        await self._trouble.meet("extend")
        await self._lease.extend(seconds)


class TroubledSubscription:
    def __init__(self, subscription: MemorySubscription, trouble: Trouble) -> None:
        self._subscription = subscription
        self._trouble = trouble

    async def receive(self) -> TroubledLease:
        await self._trouble.meet("receive")
        return TroubledLease(await self._subscription.receive(), self._trouble)

    def resize(self, prefetch: int) -> None:
        self._trouble.prefetches.append(prefetch)
        self._subscription.resize(prefetch)


class TroubledTransport:
    """`inner` with trouble."""

    def __init__(self, inner: MemoryTransport) -> None:
        self.features = inner.features
        self.inner = inner
        self.trouble = Trouble()

    async def declare(self, spec: QueueSpec) -> None:
        await self.trouble.meet("declare")
        await self.inner.declare(spec)

    async def delete(self, queue: str) -> None:
        await self.inner.delete(queue)

    async def queues(self) -> Sequence[QueueSpec]:
        return await self.inner.queues()

    async def send(self, *sends: Send) -> None:
        await self.inner.send(*sends)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[TroubledSubscription]:
        await self.trouble.meet("subscribe")
        self.trouble.prefetches.append(prefetch)
        async with self.inner.subscribe(queue, prefetch=prefetch) as subscription:
            self.trouble.subscriptions.add(subscription)
            try:
                yield TroubledSubscription(subscription, self.trouble)
            finally:
                self.trouble.subscriptions.discard(subscription)
        await self.trouble.meet("leave")

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        return await self.inner.peek(queue, limit=limit)

    async def depth(self, queue: str) -> Depth:
        await self.trouble.meet("depth")
        return await self.inner.depth(queue)

    async def purge(self, queue: str) -> int:
        return await self.inner.purge(queue)

    async def close(self) -> None:
        await self.inner.close()


class Heard:
    """A listener that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, kind: type[AnEvent]) -> list[AnEvent]:
        return [event for event in self.events if type(event) is kind]

    async def wait(self, kind: type[AnEvent], count: int = 1) -> list[AnEvent]:
        """Return all events of this kind when there are `count` of them."""
        while len(self.of(kind)) < count:
            self._news.clear()
            await self._news.wait()
        return self.of(kind)


class Work:
    """A handler that remembers its calls. Each takes `seconds`, and lasts until `gate` is open."""

    def __init__(self, seconds: float = 0.0, *, held: bool = False) -> None:
        self.calls: list[tuple[str, int]] = []
        self.running: list[str] = []
        self.cancelled: list[str] = []
        self.peak = 0
        self.seconds = seconds
        self.gate = asyncio.Event()
        self._began = asyncio.Event()
        if not held:
            self.gate.set()

    async def __call__(self, message: Message, attempt: int) -> Outcome:
        self.calls.append((message.id, attempt))
        self.running.append(message.id)
        self.peak = max(self.peak, len(self.running))
        self._began.set()
        try:
            await asyncio.sleep(self.seconds)
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.id)
            raise
        finally:
            self.running.remove(message.id)
        return Done()

    async def began(self, count: int = 1) -> None:
        """Return when there were `count` calls."""
        while len(self.calls) < count:
            self._began.clear()
            await self._began.wait()


class Place:
    """A transport with queue `q`, and what a pump on it says and reports."""

    def __init__(self, transport: Transport, trouble: Trouble | None = None) -> None:
        self.transport = transport
        self.trouble = trouble or Trouble()
        self.stop = Stop()
        self.heard = Heard()
        self.events = Events()
        self.events.subscribe(self.heard)
        self.health = Health(clock=now)

    def pump(
        self,
        handler: Handler,
        *,
        concurrency: int = 1,
        lease: float = 60.0,
        fifo: bool = False,
        retry: RetryPolicy | None = None,
        on_dead: OnDead = no_sends,
    ) -> Pump:
        settlement = Settlement(
            transport=self.transport,
            queue="q",
            retry=retry or RetryPolicy(base=1.0, jitter=0.0),
            on_dead=on_dead,
            events=self.events,
        )
        spec = QueueSpec(name="q", lease=lease, fifo=fifo)
        return Pump(spec, settlement, handler, concurrency=concurrency, pulse=self.health.pulse("q"), clock=now)

    async def send(self, *ids: str, queue: str = "q") -> None:
        await self.transport.send(*(Send(queue, Message(b"{}", id)) for id in ids))

    async def ids(self, queue: str = "q") -> list[str]:
        return [message.id for message in await self.transport.peek(queue, limit=1000)]

    async def depth(self, queue: str = "q") -> tuple[int | None, int | None, int | None]:
        depth = await self.transport.depth(queue)
        return depth.ready, depth.leased, depth.delayed

    @asynccontextmanager
    async def running(self, *pumps: Pump) -> AsyncIterator[None]:
        """Run pumps, which are stopped at the end of the block if they were not before; raise what they raise."""
        tasks = [asyncio.create_task(pump.run(self.stop)) for pump in pumps]
        try:
            yield
        finally:
            self.stop.now()
            await asyncio.wait(tasks)
        for task in tasks:
            task.result()

    async def attempts(self, count: int, queue: str = "q") -> dict[str, int]:
        """The next attempts of `count` messages, by id; they are given back."""
        async with self.transport.subscribe(queue, prefetch=count) as subscription:
            leases = [await subscription.receive() for _ in range(count)]
            return {lease.message.id: lease.attempt for lease in leases}


async def place(*ids: str, lease: float = 60.0, fifo: bool = False) -> Place:
    """A place in memory with messages of these ids."""
    transport = TroubledTransport(MemoryTransport(MemoryStore()))
    await transport.inner.declare(QueueSpec(name="q", lease=lease, fifo=fifo))
    await transport.inner.declare(QueueSpec(name="q-dlq"))
    made = Place(transport, transport.trouble)
    await made.send(*ids)
    return made


def numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]
