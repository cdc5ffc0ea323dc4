"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

from oncue.core.errors import ConnectionLostError, LeaseLostError
from oncue.transports.base import QueueSpec, Transport
from oncue.transports.sqs import SQSTransport, open_sqs


def new_name(word: str = "work") -> str:
    return f"{word}-{uuid4().hex[:8]}"


@asynccontextmanager
async def opened(url: str, name: str = "", **spec: object) -> AsyncIterator[tuple[SQSTransport, str]]:
    """A transport, and a new queue."""
    name = name or new_name()
    async with asyncio.timeout(90):
        transport = await open_sqs(url)
        try:
            await transport.declare(QueueSpec(name=name, **spec))  # type: ignore[arg-type]
            yield transport, name
            with suppress(ConnectionLostError):
                await transport.delete(name)
        finally:
            await transport.close()


async def fresh(url: str, *queues: str, lease: float = 2.0) -> SQSTransport:
    """A transport with these queues, which are empty."""
    transport = await open_sqs(url)
    for queue in queues:
        await transport.delete(queue)
        await transport.declare(QueueSpec(name=queue, lease=lease))
    return transport


async def taken(transport: Transport, queue: str) -> list[str]:
    """The ids of all messages that are ready or held, which are gone then; `transport` has to show depths.

    A message counts when it comes: its acknowledgement may be late, and then is done or comes again.
    """
    ids: list[str] = []

    async def take() -> None:
        while True:
            lease = await subscription.receive()
            ids.append(lease.message.id)
            with suppress(LeaseLostError):
                await lease.ack()

    async with transport.subscribe(queue, prefetch=100) as subscription:
        tasks = [asyncio.create_task(take()) for _ in range(100)]
        await settled_down(transport, queue)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
    return ids


async def settled_down(transport: Transport, queue: str) -> None:
    """Return when nothing is ready or held."""
    async with asyncio.timeout(60):
        while (depth := await transport.depth(queue)).ready or depth.leased:
            await asyncio.sleep(0.1)
