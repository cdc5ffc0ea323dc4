"""A server that says what a test tells it, frame by frame, over a real socket; pamqp writes and reads for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from pamqp import commands, frame, heartbeat

from oncue.transports.rabbitmq.amqp import Channel, Connection, Endpoint, connect


class Peer:
    """The server's side of the one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.number = 0  # the channel of the last frame

    def say(self, *methods: Any, channel: int = 0) -> None:
        self.writer.write(b"".join(frame.marshal(method, channel) for method in methods))

    async def hear(self, name: str) -> Any:
        """The next frame, which has to be this one; heartbeats do not count."""
        while True:
            found = await self.any()
            if not isinstance(found, heartbeat.Heartbeat):
                assert found.name == name, f"{found.name} came instead of {name}"
                return found

    async def any(self) -> Any:
        head = await self.reader.readexactly(7)
        rest = await self.reader.readexactly(int.from_bytes(head[3:]) + 1)
        _, self.number, found = frame.unmarshal(head + rest)
        return found

    async def over(self) -> None:
        """Return when the other side has closed."""
        with suppress(ConnectionResetError):
            while await self.reader.read(65_536):
                pass

    async def begin(self, mechanisms: str = "AMQPLAIN PLAIN") -> None:
        assert await self.reader.readexactly(8) == b"AMQP\0\0\x09\x01"
        self.say(commands.Connection.Start(0, 9, {"product": "Peer"}, mechanisms, "en_US"))

    async def greet(self, *, channels: int = 10, largest: int = 4096, beat: int = 0) -> None:
        """Open a connection as RabbitMQ does."""
        await self.begin()
        await self.hear("Connection.StartOk")
        self.say(commands.Connection.Tune(channels, largest, beat))
        await self.hear("Connection.TuneOk")
        await self.hear("Connection.Open")
        self.say(commands.Connection.OpenOk())

    async def open(self, connection: Connection) -> Channel:
        """Have the other side open a channel."""
        opening = asyncio.create_task(connection.channel())
        await self.hear("Channel.Open")
        self.say(commands.Channel.OpenOk(), channel=1)
        return await opening


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Endpoint, asyncio.Future[Peer]]]:
    """Where to connect to, and who will be there then."""
    accepted: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(Peer(reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Endpoint("127.0.0.1", port, "guest", "guest", heartbeat=0, timeout=5.0), accepted
    finally:
        if accepted.done():
            peer = accepted.result()
            peer.writer.transport.abort()
        server.close()


@asynccontextmanager
async def connected(*, heartbeat: int = 0, largest: int = 4096) -> AsyncIterator[tuple[Connection, Peer]]:
    """Both sides of an open connection."""
    async with listening() as (endpoint, accepted):
        connecting = asyncio.create_task(connect(msgspec.structs.replace(endpoint, heartbeat=heartbeat)))
        peer = await accepted
        await peer.greet(beat=heartbeat, largest=largest)
        connection = await connecting
        try:
            yield connection, peer
        finally:
            connection.abort()
