"""A transport that tells how long each message was waited for, and is otherwise the one it is made of."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from oncue.transports.base import Features, Lease, Subscription, Transport


class Timed:
    """`waited` is told the seconds of each `receive` that brought a message."""

    def __init__(self, transport: Transport, waited: Callable[[float], None]) -> None:
        self._transport = transport
        self._waited = waited
        self.features: Features = transport.features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[Subscription]:
        async with self._transport.subscribe(queue, prefetch=prefetch) as subscription:
            yield _Timed(subscription, self._waited)


class _Timed:
    def __init__(self, subscription: Subscription, waited: Callable[[float], None]) -> None:
        self._subscription = subscription
        self._waited = waited
        self.resize = subscription.resize

    async def receive(self) -> Lease:
        started = time.perf_counter()
        lease = await self._subscription.receive()
        self._waited(time.perf_counter() - started)
        return lease
