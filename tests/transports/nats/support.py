"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats
from nats.js import JetStreamContext
from transports.proxy import Proxy
from transports.words import receive

from oncue.core.errors import ConnectionLostError, LeaseLostError
from oncue.transports.base import QueueSpec
from oncue.transports.nats import NATSTransport, open_nats
from oncue.transports.nats.address import parse

QUIET = 0.3
"""Seconds in which nothing comes from a queue that is empty."""


@asynccontextmanager
async def opened(url: str, *queues: str, lease: float = 60.0) -> AsyncIterator[NATSTransport]:
    """A transport with the queues declared, `work` unless others are named."""
    async with asyncio.timeout(55):
        transport = await open_nats(url)
        try:
            for queue in queues or ("work",):
                await transport.declare(QueueSpec(name=queue, lease=lease))
            yield transport
        finally:
            await transport.close()


@asynccontextmanager
async def other_program(url: str, **options: Any) -> AsyncIterator[JetStreamContext]:
    """What everybody else uses."""
    client = await nats.connect(url.partition("?")[0], allow_reconnect=False, **options)
    try:
        yield client.jetstream()
    finally:
        await client.close()


def prefix_of(url: str) -> str:
    return parse(url).prefix


async def taken(transport: NATSTransport, queue: str = "work") -> list[str]:
    """The ids of all messages that are ready, which are gone then."""
    ids: list[str] = []
    async with transport.subscribe(queue, prefetch=500) as subscription:
        while True:
            try:
                lease = await receive(subscription, within=QUIET)
            except TimeoutError:
                if not (await transport.depth(queue)).ready:
                    return ids
                continue
            try:
                await lease.ack()
                ids.append(lease.message.id)
            except LeaseLostError:
                continue


async def surely(settle: Callable[[], Awaitable[None]]) -> None:
    """Try again what could not be said."""
    while True:
        try:
            await settle()
            return
        except ConnectionLostError:
            await asyncio.sleep(0.01)


async def settled_down(transport: NATSTransport, *queues: str) -> None:
    """Return when the queues are empty."""
    async with asyncio.timeout(45):
        for queue in queues:
            while True:
                with suppress(ConnectionLostError):
                    if not any(await depth(transport, queue)):
                        break
                await asyncio.sleep(0.02)


async def depth(transport: NATSTransport, queue: str = "work") -> tuple[int | None, int | None, int | None]:
    found = await transport.depth(queue)
    return found.ready, found.leased, found.delayed


class Wire(Proxy):
    """A proxy between a transport and its server."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(parse(url).hosts[0][1])

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}?{self._url.partition('?')[2]}"
