"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from brokers.kafka_server import KafkaServer
from transports.proxy import Proxy
from transports.words import receive

from oncue.core.errors import LeaseLostError
from oncue.transports.base import QueueSpec
from oncue.transports.kafka import KafkaTransport, open_kafka

QUIET = 2.0
"""Seconds in which nothing comes from a queue that is empty."""


@asynccontextmanager
async def opened(url: str, *queues: str, lease: float = 60.0) -> AsyncIterator[KafkaTransport]:
    """A transport with the queues declared anew, `work` unless others are named; they are deleted at the end."""
    names = queues or ("work",)
    async with asyncio.timeout(100):
        transport = await open_kafka(url)
        try:
            for queue in names:
                await transport.delete(queue)
                await transport.declare(QueueSpec(name=queue, lease=lease))
            yield transport
            for queue in names:
                await transport.delete(queue)
        finally:
            await transport.close()


async def taken(transport: KafkaTransport, queue: str = "work") -> list[str]:
    """The ids of all messages in the queue, which are gone then."""
    ids: list[str] = []
    async with transport.subscribe(queue, prefetch=500) as subscription:
        while True:
            try:
                lease = await receive(subscription, within=QUIET)
            except TimeoutError:
                depth = await transport.depth(queue)
                if not (depth.ready or depth.leased):
                    return ids
                continue
            try:
                await lease.ack()
                ids.append(lease.message.id)
            except LeaseLostError:
                continue


async def settled_down(transport: KafkaTransport, *queues: str) -> None:
    """Return when the queues are empty."""
    async with asyncio.timeout(60):
        for queue in queues:
            while (depth := await transport.depth(queue)).ready or depth.leased:
                await asyncio.sleep(0.05)


class Wire(Proxy):
    """The way to a server through which it says to be found."""

    def __init__(self, server: KafkaServer) -> None:
        super().__init__(server.ports.proxied, server.ports.proxy)

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}?partitions=4&session=4"
