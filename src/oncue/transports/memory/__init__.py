"""Queues in the memory of this process: the reference transport, with every feature of the contract.

Everything happens in one event loop and in single steps between awaits, so that acks with sends are atomic. Times are
the event loop's own, which makes delays and leases cost nothing under virtual time (`oncue.testing`).
"""

from __future__ import annotations

import asyncio
import re
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

from oncue.core.errors import (
    ConfigError,
    InvalidValueError,
    MessageTooLargeError,
    QueueNotFoundError,
    TransportClosedError,
)
from oncue.core.message import Message, Send, check_delay
from oncue.core.redact import redact
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_equal, check_spec
from oncue.transports.memory.queue import MemoryQueue
from oncue.transports.memory.subscription import MemorySubscription

FEATURES = Features(
    durable=False,
    shared=False,
    atomic_ack=True,
    free_release=True,
    native_delay=True,
    longest_delay=None,
    fifo=True,
    lease_cap=None,
    max_body=None,
    headers=True,
    depth=frozenset({"ready", "leased", "delayed"}),
    peek=True,
    retention=True,
)

_URL = re.compile(r"(?i:memory):(//)?(?P<name>[A-Za-z0-9._-]*)", re.ASCII)
_BREATH = 32
"""After this many operations that had nothing to wait for, others get their turn in the event loop."""


class MemoryStore:
    """Queues and their event loop. Connections of one store share them; they outlive the connections."""

    queue_type: ClassVar[type[MemoryQueue]] = MemoryQueue

    def __init__(self) -> None:
        self.loop: AbstractEventLoop = asyncio.get_running_loop()
        self.queues: dict[str, MemoryQueue] = {}
        self.connections: set[MemoryTransport] = set()
        self._offset = 0.0
        self._order = 0
        self._operations = 0

    def time(self) -> float:
        """Seconds; goes on from one event loop to the next."""
        return self.loop.time() + self._offset

    def call_at(self, when: float, call: Callable[[], None]) -> TimerHandle:
        return self.loop.call_at(when - self._offset, call)

    def next_order(self) -> int:
        self._order += 1
        return self._order

    async def breathe(self) -> None:
        """Give others a turn now and then, so that a caller who never has to wait does not stop the event loop."""
        self._operations += 1
        if self._operations % _BREATH == 0:
            await asyncio.sleep(0)

    def queue(self, name: str) -> MemoryQueue:
        try:
            return self.queues[name]
        except KeyError:
            raise QueueNotFoundError(name) from None

    def check(self, sends: Sequence[Send], max_body: int | None) -> None:
        """Raise what stands against any of `sends`."""
        for send in sends:
            check_delay(send.delay)
            self.queue(send.queue)
            size = len(send.message.body)
            if max_body is not None and size > max_body:
                raise MessageTooLargeError(send.queue, size, max_body)

    def put(self, sends: Sequence[Send]) -> None:
        """Store messages that were checked."""
        for send in sends:
            self.queues[send.queue].add(send.message, send.delay)
        for name in {send.queue for send in sends}:
            self.queues[name].dispatch()

    def connect(self, connection: MemoryTransport) -> None:
        """Take in a connection of the running event loop; raise `ConfigError` while another loop uses the store."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self._move_to(loop)
        if not self.connections:
            for queue in self.queues.values():
                queue.start()
        self.connections.add(connection)

    def disconnect(self, connection: MemoryTransport) -> None:
        self.connections.discard(connection)
        if not self.connections:
            for queue in self.queues.values():
                queue.stop()

    def _move_to(self, loop: AbstractEventLoop) -> None:
        if self.connections and not self.loop.is_closed():
            raise ConfigError("memory: this store is in use in another event loop; one store serves one event loop")
        for connection in list(self.connections):
            connection.disconnect()
        self._offset += self.loop.time() - loop.time()
        self.loop = loop


class MemoryTransport:
    """A connection to a `MemoryStore`."""

    subscription_type: ClassVar[type[MemorySubscription]] = MemorySubscription

    def __init__(self, store: MemoryStore, features: Features = FEATURES) -> None:
        self.features = features
        self.store = store
        self._subscriptions: set[MemorySubscription] = set()
        self._closed = False
        store.connect(self)

    async def declare(self, spec: QueueSpec) -> None:
        self.check_open()
        check_spec(spec)
        queue = self.store.queues.setdefault(spec.name, self.store.queue_type(self.store, spec))
        check_equal(queue.spec, spec)

    async def delete(self, queue: str) -> None:
        self.check_open()
        found = self.store.queues.pop(queue, None)
        if found is not None:
            found.delete()

    async def queues(self) -> Sequence[QueueSpec]:
        self.check_open()
        return [queue.spec for _, queue in sorted(self.store.queues.items())]

    async def send(self, *sends: Send) -> None:
        self.check_open()
        await self.store.breathe()
        self.check_open()
        self.store.check(sends, self.features.max_body)
        self.store.put(sends)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[MemorySubscription]:
        subscription = self.subscription_type(self, queue, prefetch)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.leave()

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        found = self.queue(queue)
        found.catch_up()
        return found.oldest(limit)

    async def depth(self, queue: str) -> Depth:
        found = self.queue(queue)
        found.catch_up()
        return found.depth()

    async def purge(self, queue: str) -> int:
        found = self.queue(queue)
        found.catch_up()
        return found.purge()

    async def close(self) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """As `close`, in one step."""
        if self._closed:
            return
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.leave()
        self._subscriptions.clear()
        self.store.disconnect(self)

    def check_open(self) -> None:
        if self._closed:
            raise TransportClosedError

    def queue(self, name: str) -> MemoryQueue:
        """The queue of this name, for a connection that is open."""
        self.check_open()
        return self.store.queue(name)


# What `memory:NAME` means by "the same": this dict is the process's memory, as a file is SQLite's.
_stores: dict[str, MemoryStore] = {}


async def open_memory(url: str) -> MemoryTransport:
    """Open `memory:`, which is a fresh store each time, or `memory:NAME`, which is one store for all of this process.

    Raise `InvalidValueError` for any other URL, and `ConfigError` while another event loop uses the store of that name.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise InvalidValueError(
            f"{redact(url)}: expected 'memory:' or 'memory:NAME', a name of letters, digits, '.', '-' or '_'"
        )
    name = match["name"]
    store = _stores.get(name) if name else None
    if store is None:
        store = MemoryStore()
        if name:
            _stores[name] = store
    return MemoryTransport(store)
