"""Subscriptions: several of one queue in one process share what comes to it."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Future
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from oncue.core.errors import QueueNotFoundError, TransportClosedError, TransportError, again
from oncue.transports.checks import check_prefetch
from oncue.transports.kafka.lease import KafkaLease
from oncue.transports.kafka.member import Member

if TYPE_CHECKING:
    from oncue.transports.kafka.transport import KafkaTransport


class KafkaSubscription:
    """Receives from this process's member of the queue's group, which comes with the first subscription and goes with the last."""

    def __init__(self, transport: KafkaTransport, queue: str, prefetch: int) -> None:
        self.transport = transport
        self.queue = queue
        self.prefetch = check_prefetch(prefetch)
        self.held: dict[KafkaLease, None] = {}
        self.suspects = 0
        self.left = False
        self.member: Member | None = None
        self._waiters: deque[Future[None]] = deque()
        self._joining: asyncio.Task[Member] | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        return max(0, self.prefetch - len(self.held))

    @property
    def waiting(self) -> bool:
        return any(not waiter.done() for waiter in self._waiters)

    async def receive(self) -> KafkaLease:
        """The next message. Safe to cancel: nothing is taken out before the moment of returning."""
        while True:
            self.check_open()
            member = self.member
            if member is None or member.ended:
                await self._join()
                continue
            lease = member.claim(self) if self.room else None
            if lease is not None:
                return lease
            member.poke()
            await self._wait()

    def resize(self, prefetch: int) -> None:
        self.prefetch = check_prefetch(prefetch)
        if self.member is not None and not self.left:
            self.member.trim()
            self.member.poke()
            self.wake()

    def check_open(self) -> None:
        self.transport.check_open()
        if self.left:
            raise TransportClosedError

    async def leave(self) -> None:
        """Release what is not settled; may be called twice, and goes on when it is cancelled."""
        if self._leaving is None:
            self.left = True
            self._leaving = asyncio.ensure_future(self._leave())
        await asyncio.shield(self._leaving)

    async def _leave(self) -> None:
        self.fail(TransportClosedError())
        if self._joining is not None:
            await asyncio.wait([self._joining])
        if self.member is not None:
            await self.member.part(self)

    async def _join(self) -> None:
        """From the first `receive` on it is a consumer; one who is cancelled meanwhile leaves the joining to go on."""
        if self._joining is None or self._joining.done():
            self._joining = asyncio.ensure_future(self.transport.join(self))
            self._joining.add_done_callback(self._have_joined)
        await asyncio.shield(self._joining)

    def _have_joined(self, joining: asyncio.Task[Member]) -> None:
        if not joining.cancelled() and joining.exception() is None:
            self.member = joining.result()

    def wake(self) -> bool:
        """Have one who waits look again; whether there was one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    def fail(self, error: TransportError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(again(error))

    def lose_queue(self) -> None:
        self.fail(QueueNotFoundError(self.queue))

    async def _wait(self) -> None:
        waiter: Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except CancelledError:
            with suppress(ValueError):
                self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled() and self.member is not None:
                self.member.offer()  # it was this one's turn; somebody else's now
            raise
