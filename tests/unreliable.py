"""A transport over another one whose answers get lost, come late or are refusals: for tests of what is done about that."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from oncue.core.errors import TransportError
from oncue.core.message import Message, Send
from oncue.transports.base import Depth, Features, Lease, QueueSpec, Subscription, Transport


class Fault(msgspec.Struct, frozen=True):
    """`error` instead of an answer; `done` says that what was asked for happens all the same."""

    error: TransportError
    done: bool = False


class Faults:
    """What goes wrong with the next requests of some kind, in order; None and the end of the plan mean nothing."""

    def __init__(self) -> None:
        self.plan: deque[Fault | None] = deque()
        self.latency = 0.0
        self.lag = 0.0  # how long the answer to an acknowledgement that was done is under way
        self.asked = 0

    def add(self, error: TransportError, times: int = 1, *, done: bool = False) -> None:
        self.plan.extend([Fault(error, done)] * times)

    async def meet(self) -> Fault | None:
        """The fault of this request; raises at once where it means that nothing is done."""
        self.asked += 1
        if self.latency:
            await asyncio.sleep(self.latency)
        fault = self.plan.popleft() if self.plan else None
        if fault is not None and not fault.done:
            raise fault.error
        return fault


class UnreliableLease:
    """A lease whose ack, nack and release meet the faults of its transport's `settling`."""

    def __init__(self, lease: Lease, faults: Faults) -> None:
        self._lease = lease
        self._faults = faults

    @property
    def message(self) -> Message:
        return self._lease.message

    @property
    def attempt(self) -> int:
        return self._lease.attempt

    async def ack(self, *sends: Send) -> None:
        fault = await self._faults.meet()
        await self._lease.ack(*sends)
        if self._faults.lag:
            await asyncio.sleep(self._faults.lag)
        _answer(fault)

    async def nack(self, *, delay: float = 0.0) -> None:
        fault = await self._faults.meet()
        await self._lease.nack(delay=delay)
        _answer(fault)

    async def release(self) -> None:
        fault = await self._faults.meet()
        await self._lease.release()
        _answer(fault)

    async def extend(self, seconds: float) -> None:
        await self._lease.extend(seconds)


class UnreliableSubscription:
    """A subscription that meets the faults of its transport's `receiving`."""

    def __init__(self, subscription: Subscription, transport: UnreliableTransport) -> None:
        self._subscription = subscription
        self._transport = transport

    async def receive(self) -> UnreliableLease:
        await self._transport.receiving.meet()
        return UnreliableLease(await self._subscription.receive(), self._transport.settling)

    def resize(self, prefetch: int) -> None:
        self._subscription.resize(prefetch)


class UnreliableTransport:
    """`inner` with faults; with `blind`, it cannot tell how many messages there are."""

    def __init__(self, inner: Transport, *, blind: bool = False) -> None:
        self.features: Features = inner.features
        self.settling = Faults()
        self.receiving = Faults()
        self.declaring = Faults()
        self._inner = inner
        self._blind = blind

    async def declare(self, spec: QueueSpec) -> None:
        await self.declaring.meet()
        await self._inner.declare(spec)

    async def delete(self, queue: str) -> None:
        await self._inner.delete(queue)

    async def queues(self) -> Sequence[QueueSpec]:
        return await self._inner.queues()

    async def send(self, *sends: Send) -> None:
        await self._inner.send(*sends)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[UnreliableSubscription]:
        async with self._inner.subscribe(queue, prefetch=prefetch) as subscription:
            yield UnreliableSubscription(subscription, self)

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        return await self._inner.peek(queue, limit=limit)

    async def depth(self, queue: str) -> Depth:
        return Depth(None, None, None) if self._blind else await self._inner.depth(queue)

    async def purge(self, queue: str) -> int:
        return await self._inner.purge(queue)

    async def close(self) -> None:
        await self._inner.close()


def _answer(fault: Fault | None) -> None:
    if fault is not None:
        raise fault.error
