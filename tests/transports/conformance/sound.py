"""Transports in memory that keep the contract: one that can do little, and one whose store can be restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from oncue.core.errors import ConnectionLostError, InvalidValueError
from oncue.core.message import Send
from oncue.testing import TransportConformance
from oncue.transports.base import Depth, Features, QueueSpec, Transport
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport
from oncue.transports.memory.queue import MemoryQueue
from oncue.transports.memory.subscription import MemoryLease

MODEST = Features(
    durable=False,
    shared=False,
    atomic_ack=False,
    free_release=False,
    native_delay=False,
    longest_delay=3600.0,
    fifo=False,
    lease_cap=900.0,
    max_body=4096,
    headers=False,
    depth=frozenset({"ready"}),
    peek=False,
    retention=False,
)


class ModestLease(MemoryLease):
    """Sends first and acknowledges then, counts what is released, and lasts no longer than the cap."""

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        check_sends(sends)
        self.queue.store.check(sends, MODEST.max_body)
        self.queue.store.put(sends)
        await asyncio.sleep(0)
        await super().ack()

    async def nack(self, *, delay: float = 0.0) -> None:
        check_seconds(delay, MODEST.longest_delay)
        await super().nack(delay=delay)

    async def release(self) -> None:
        await self.nack()

    async def extend(self, seconds: float) -> None:
        check_seconds(seconds, MODEST.lease_cap)
        await super().extend(seconds)


class ModestQueue(MemoryQueue):
    lease_type = ModestLease

    def depth(self) -> Depth:
        return Depth(super().depth().ready, None, None)


class ModestStore(MemoryStore):
    queue_type = ModestQueue


class ModestTransport(MemoryTransport):
    """Refuses what it cannot do."""

    store_type = ModestStore

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, MODEST)

    async def declare(self, spec: QueueSpec) -> None:
        if spec.fifo or spec.retention is not None:
            raise InvalidValueError(f"queue {spec.name}: neither order nor retention can be had here")
        check_seconds(spec.lease, MODEST.lease_cap)
        await super().declare(spec)

    async def send(self, *sends: Send) -> None:
        check_sends(sends)
        await super().send(*sends)


def check_sends(sends: Sequence[Send]) -> None:
    for send in sends:
        check_seconds(send.delay, MODEST.longest_delay)
        if send.message.headers:
            raise InvalidValueError("headers are not carried here")


def check_seconds(seconds: float, most: float | None) -> None:
    if most is not None and seconds > most:
        raise InvalidValueError(f"{seconds} s are more than the {most} s that can be had here")


class ServedStore(MemoryStore):
    """As a broker keeps it: it can be away for a while, and everything is there when it comes back."""

    away = False

    async def restart(self) -> None:
        self.away = True
        for connection in self.connections:
            for subscription in connection._subscriptions:
                self.cut_off(subscription)
        await asyncio.sleep(0.05)
        self.away = False

    def cut_off(self, subscription: Any) -> None:
        """Tell those who wait that the connection is lost."""
        subscription.fail(ConnectionLostError("the store is away"))


class ServedTransport(MemoryTransport):
    store_type: type[ServedStore] = ServedStore

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, msgspec.structs.replace(FEATURES, durable=True))

    def check_open(self) -> None:
        super().check_open()
        if self.store.away:  # type: ignore[attr-defined]
            raise ConnectionLostError("the store is away")


class InMemory(TransportConformance):
    """The suite on one kind of memory transport, in virtual time."""

    virtual_time = True
    kind: type[MemoryTransport] = MemoryTransport
    store: MemoryStore | None = None

    async def open(self) -> Transport:
        if self.store is None:
            self.store = getattr(self.kind, "store_type", MemoryStore)()
        return self.kind(self.store)


class Restartable(InMemory):
    """The same with a store that can be restarted."""

    kind = ServedTransport

    async def restart(self) -> None:
        assert isinstance(self.store, ServedStore)
        await self.store.restart()
