"""Leases on messages in memory, and those who receive them."""

from __future__ import annotations

from asyncio import CancelledError, Future
from collections import deque
from typing import TYPE_CHECKING

from oncue.core.errors import InvalidValueError, LeaseLostError, TransportClosedError
from oncue.core.message import Send, check_delay
from oncue.transports.checks import check_prefetch

if TYPE_CHECKING:
    from oncue.transports.memory import MemoryTransport
    from oncue.transports.memory.queue import Entry, MemoryQueue


class MemoryLease:
    """A lease on a message of a `MemoryQueue`; each method is one step and cannot be cancelled half-way."""

    __slots__ = ("attempt", "entry", "length", "message", "queue", "subscription", "suspect", "until")

    def __init__(self, queue: MemoryQueue, subscription: MemorySubscription, entry: Entry, *, suspect: bool) -> None:
        self.queue = queue
        self.subscription = subscription
        self.entry = entry
        self.message = entry.message
        self.attempt = entry.claims
        self.suspect = suspect
        self.until = 0.0
        self.length = 0.0

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        queue = self.queue
        queue.store.check(sends, self.subscription.connection.features.max_body)
        queue.end(self)
        queue.remove(self.entry)
        queue.store.put(sends)
        queue.dispatch()

    async def nack(self, *, delay: float = 0.0) -> None:
        check_delay(delay)
        self._check_held()
        self.queue.end(self)
        self.queue.nack(self.entry, delay)
        self.queue.dispatch()

    async def release(self) -> None:
        self._check_held()
        self.give_back()

    async def extend(self, seconds: float) -> None:
        if check_delay(seconds) <= 0:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 seconds")
        self._check_held()
        self.queue.prolong(self, seconds)

    @property
    def held(self) -> bool:
        """Whether it can still be settled."""
        return self.entry.lease is self and self.queue.store.time() < self.until

    def give_back(self) -> None:
        """As `release`, for a lease that is known to be held."""
        self.entry.claims -= 1
        self.queue.end(self)
        self.queue.put_back([self.entry])
        self.queue.dispatch()

    def _check_held(self) -> None:
        self.subscription.connection.check_open()
        if not self.held:
            raise LeaseLostError(self.queue.spec.name, self.message.id)


class MemorySubscription:
    """Claims nothing ahead: a message is leased at the moment when it is handed to a caller of `receive`."""

    def __init__(self, connection: MemoryTransport, name: str, prefetch: int) -> None:
        self.connection = connection
        self.suspects = 0
        self._name = name
        self._prefetch = check_prefetch(prefetch)
        self._unsettled: dict[MemoryLease, None] = {}
        self._waiters: deque[Future[MemoryLease]] = deque()
        self._left = False
        connection.queue(name).subscriptions.add(self)

    async def receive(self) -> MemoryLease:
        await self.connection.store.breathe()
        while True:
            queue = self._queue()
            queue.catch_up()
            if len(self._unsettled) < self._prefetch and self.first_waiter() is None:
                lease = queue.claim(self)
                if lease is not None:
                    return lease
            lease = await self._wait(queue)
            if lease.held:
                if lease.until - queue.store.time() >= lease.length / 2:
                    return lease
                lease.give_back()

    def resize(self, prefetch: int) -> None:
        self._prefetch = check_prefetch(prefetch)
        queue = self._queue()
        self.update_hunger(queue)
        queue.dispatch()

    def first_waiter(self) -> Future[MemoryLease] | None:
        """Who waits longest, and is no longer waiting after this."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.done():
                return waiter
            self._waiters.popleft()
        return None

    def update_hunger(self, queue: MemoryQueue) -> None:
        """Stand in the queue's line if somebody waits here and there is room."""
        if len(self._unsettled) < self._prefetch and self.first_waiter() is not None:
            queue.hungry[self] = None
        else:
            queue.hungry.pop(self, None)

    def take(self, lease: MemoryLease) -> None:
        self._unsettled[lease] = None
        self.suspects += lease.suspect

    def give(self, lease: MemoryLease) -> None:
        del self._unsettled[lease]
        self.suspects -= lease.suspect
        self.update_hunger(lease.queue)

    def fail(self, error: Exception) -> None:
        """Wake all who wait with `error`."""
        for waiter in self._waiters:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_exception(error)
        self._waiters.clear()

    def leave(self) -> None:
        """Give back what is not settled, uncounted, and let nobody wait; may be called twice."""
        if self._left:
            return
        self._left = True
        self.fail(TransportClosedError())
        queues: dict[MemoryQueue, list[Entry]] = {}
        for lease in list(self._unsettled):
            lease.entry.claims -= lease.held
            lease.entry.lapses += not lease.held
            lease.queue.end(lease)
            queues.setdefault(lease.queue, []).append(lease.entry)
        for queue, entries in queues.items():
            queue.put_back(entries)
            queue.dispatch()
        mine = self.connection.store.queues.get(self._name)
        if mine is not None:
            mine.subscriptions.discard(self)
            mine.hungry.pop(self, None)

    def _queue(self) -> MemoryQueue:
        if self._left:
            raise TransportClosedError
        queue = self.connection.queue(self._name)
        queue.subscriptions.add(self)
        return queue

    async def _wait(self, queue: MemoryQueue) -> MemoryLease:
        waiter: Future[MemoryLease] = queue.store.loop.create_future()
        self._waiters.append(waiter)
        self.update_hunger(queue)
        queue.dispatch()
        try:
            return await waiter
        except CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None and waiter.result().held:
                waiter.result().give_back()
            self.update_hunger(queue)
            raise
