"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

from oncue.core.errors import ConnectionLostError, LeaseLostError
from oncue.transports.base import QueueSpec
from oncue.transports.sqs import SQSTransport, open_sqs


def new_name(word: str = "work") -> str:
    return f"{word}-{uuid4().hex[:8]}"


@asynccontextmanager
async def opened(
    url: str, name: str = "", *, within: float = 90.0, **spec: object
) -> AsyncIterator[tuple[SQSTransport, str]]:
    """A transport, and a new queue, for so many seconds."""
    name = name or new_name()
    async with asyncio.timeout(within):
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


async def taken(transport: SQSTransport, queue: str) -> list[str]:
    """The ids of all messages, which are gone then.

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


async def settled_down(transport: SQSTransport, queue: str) -> None:
    """Return when nothing is ready, held or delayed, as what may end its consumers is while another such is held."""
    async with asyncio.timeout(90):
        while await left(transport, queue):
            await asyncio.sleep(0.1)


async def left(transport: SQSTransport, queue: str) -> int:
    """All messages, exact on ElasticMQ."""
    found = await transport.desk.queues.attributes(queue)
    return sum(int(found[f"ApproximateNumberOfMessages{state}"]) for state in ("", "NotVisible", "Delayed"))
