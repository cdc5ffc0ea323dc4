"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from brokers.kafka_server import KafkaServer
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


class Proxy:
    """The way to a server through which it says to be found. `cut` breaks all connections; with `mute` the bytes of both sides vanish.

    requests, answers: how many bytes of each side still pass before all connections are cut.
    """

    def __init__(self, server: KafkaServer) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.mute = False
        self.requests: int | None = None
        self.answers: int | None = None
        self.cuts = 0

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self._server.ports.proxy}?partitions=4&session=4"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._server.ports.proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self.cuts += 1
        self.requests = self.answers = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", self._server.ports.proxied)
        self._writers |= {writer, to_server}
        for source, target, side in ((reader, to_server, "requests"), (there, writer, "answers")):
            task = asyncio.create_task(self._pass(source, target, side))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, side: str) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self.mute:
                    continue
                left = getattr(self, side)
                if left is not None and left < len(data):
                    target.write(data[: max(0, left)])
                    await target.drain()
                    await asyncio.sleep(0.01)  # what was passed on arrives first
                    self.cut()
                    return
                if left is not None:
                    setattr(self, side, left - len(data))
                target.write(data)
                await target.drain()
        target.transport.abort()
