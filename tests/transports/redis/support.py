"""Words that the tests of this transport are written in, and a connection that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from brokers.redis_server import RedisServer

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


class Proxy:
    """Stands between client and server. `cut` breaks all connections; with `mute` the bytes of both sides vanish.

    budget: how many bytes of the client's, or of the server's answers, still pass before the connection is cut.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.mute = False
        self.requests: int | None = None
        self.answers: int | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        pair = {writer, to_server}
        self._writers |= pair
        for source, target, side in ((reader, to_server, "requests"), (there, writer, "answers")):
            task = asyncio.create_task(self._pass(source, target, side, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, side: str, pair: set[Any]
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self.mute:
                    continue
                left = getattr(self, side)
                if left is not None:
                    setattr(self, side, left - len(data))
                    if left < len(data):
                        setattr(self, side, None)
                        target.write(data[: max(0, left)])
                        with suppress(OSError):
                            await target.drain()
                        break
                target.write(data)
                await target.drain()
        await asyncio.sleep(0.01)  # what was passed on arrives first
        for each in pair:
            each.transport.abort()
        self._writers -= pair
