"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from brokers.redis_server import RedisServer
from transports.proxy import Proxy

from oncue.transports.base import QueueSpec, Transport
from oncue.transports.redis import open_redis


@asynccontextmanager
async def opened(url: str, *queues: str, lease: float = 60.0) -> AsyncIterator[Transport]:
    """A transport with the queues declared, `work` unless others are named."""
    async with asyncio.timeout(50):
        transport = await open_redis(url)
        try:
            for queue in queues or ("work",):
                await transport.declare(QueueSpec(name=queue, lease=lease))
            yield transport
        finally:
            await transport.close()


async def ids_in(transport: Transport, queue: str = "work") -> list[str]:
    """The ids of all messages of a queue, whatever their state."""
    return [message.id for message in await transport.peek(queue, limit=1_000_000)]


async def depth(transport: Transport, queue: str = "work") -> tuple[int | None, int | None, int | None]:
    found = await transport.depth(queue)
    return found.ready, found.leased, found.delayed


def calls(server: RedisServer, name: str) -> int:
    """How often the server has executed a command."""
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith(f"cmdstat_{name}:"):
            return int(line.split("calls=")[1].split(",")[0])
    return 0


class Wire(Proxy):
    """A proxy between a transport and its server."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"
