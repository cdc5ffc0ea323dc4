"""The near end of a runtime's socket: one lasting connection with many requests in flight, or Asya's one for each message."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import CancelledError
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Raw

from oncue.core.failure import Failure
from oncue.workloads.frames import (
    CALL,
    ENVELOPE,
    LENGTH,
    PING,
    PROTOCOL,
    STOPPING_ERROR,
    Connection,
    Hello,
    Item,
    Reply,
    Sent,
    decode_hello,
    reply_of,
)

__all__ = [
    "ERROR_FILE",
    "READY_FILE",
    "STOPPING_ERROR",
    "Announced",
    "Hello",
    "Item",
    "Reply",
    "RuntimeClient",
    "Sent",
    "announced",
    "exchange",
    "load_error",
    "reply_of",
]

READY_FILE = "runtime-ready"
ERROR_FILE = "runtime-error"


class RuntimeClient:
    """A lasting connection to one of our runtimes. Made by `connect`; closed by `close`, or as an async context manager."""

    def __init__(self, connection: Connection, hello: Hello) -> None:
        self._connection = connection
        self.hello = hello

    @classmethod
    async def connect(cls, path: Path | str, *, handler_timeout: float | None = None, kill: bool = False) -> Self:
        """Connect and exchange hellos. May be cancelled.

        `handler_timeout` is how many seconds a handler may take unless a call says otherwise. With `kill`, synchronous handlers
        that still run when this client hangs up are ended with their processes. Raise `OSError` when there is nobody,
        and `ConnectionResetError` when who answers is no runtime of ours.
        """
        connection = Connection()
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, str(path))
        fields: dict[str, Any] = {"oncue": PROTOCOL}
        if handler_timeout is not None:
            fields["timeout"] = handler_timeout
        if kill:
            fields["kill"] = True
        text = msgspec.json.encode(fields)
        connection.write(LENGTH.pack(len(text)), text)
        try:
            return cls(connection, await connection.hello)
        except BaseException:
            connection.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def stopping(self) -> bool:
        """Whether the runtime takes no more requests."""
        return self._connection.stopping

    @property
    def lost(self) -> str | None:
        """Why the connection is of no use any more; None while it is."""
        return self._connection.lost

    async def lose(self) -> None:
        """Wait until the connection is lost or closed. May be cancelled."""
        await asyncio.shield(self._connection.closed)

    async def call(
        self,
        body: bytes | Raw,
        *,
        envelope: bool = False,
        fields: bytes = b"",
        handler_timeout: float | None = None,
        on_item: Callable[[Item], None] | None = None,
    ) -> Reply:
        """Have the handler called once, and wait for what comes of it.

        `body` is the payload, or with `envelope` the whole envelope; `fields` is JSON for the handler's context, see the
        protocol. `handler_timeout` is in seconds, from the moment the handler begins. `on_item` is told of every item at once,
        and the reply holds none then. Cancelling it cancels an `async` handler, or keeps one from beginning. Raise
        `ConnectionResetError` when the runtime is gone and it is not known what became of the request, and `ValueError`
        when the request is over its limit.
        """
        size = len(memoryview(body)) + len(fields)
        if size > self.hello.frame_limit:
            raise ValueError(f"a request of {size} bytes is over the runtime's limit of {self.hello.frame_limit}")
        number = 0 if handler_timeout is None else max(1, min(round(handler_timeout * 1000), 2**32 - 1))
        reply: Reply = await self._connection.ask(ENVELOPE if envelope else CALL, number, fields, body, on_item)
        return reply

    async def ping(self) -> int:
        """How many requests of this connection the runtime has in hand. Answered also while handlers run."""
        number: int = await self._connection.ask(PING, 0, b"", b"")
        return number

    async def close(self) -> None:
        """Hang up, which cancels what is in flight. May be called twice."""
        self._connection.close()
        with contextlib.suppress(CancelledError):
            await asyncio.shield(self._connection.closed)


class Announced(msgspec.Struct, frozen=True):
    """What the ready file of a runtime says. `protocol` is 0 for one that speaks Asya's alone."""

    protocol: int
    hello: Hello | None = None


def announced(folder: Path | str) -> Announced | None:
    """Read the ready file in the folder of a runtime's socket; None when it is not ready. Blocks for a small file."""
    try:
        text = (Path(folder) / READY_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    _, _, line = text.partition(b"\n")
    try:
        hello = decode_hello(line)
    except msgspec.DecodeError:
        return Announced(0)
    return Announced(hello.oncue, hello)


def load_error(folder: Path | str) -> Failure | None:
    """Why a runtime could not load its handler, if it has said so in the folder of its socket. Blocks for a small file."""
    try:
        text = (Path(folder) / ERROR_FILE).read_bytes()
        return reply_of(text).failure
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


async def exchange(path: Path | str, body: bytes, *, within: float | None = None) -> bytes:
    """Send `body` over a connection of its own, as Asya does, and return the answer, a JSON array. May be cancelled.

    Raise `TimeoutError` when it takes more than `within` seconds in all, or `ConnectionError` with Asya's text for what went wrong:
    `ConnectionRefusedError` when nobody is there, so that nothing was sent.
    """
    async with asyncio.timeout(within):
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError as error:
            raise ConnectionRefusedError(f"failed to connect to runtime socket: {error}") from error
        try:
            return await _exchanged(reader, writer, body)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    try:
        writer.write(LENGTH.pack(len(body)))
        writer.write(body)
        await writer.drain()
    except OSError as error:
        raise ConnectionError(f"failed to send message to runtime: failed to write data: {error}") from error
    part = "length prefix"
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        part = "data"
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError(f"failed to read response from runtime: failed to read {part}: EOF") from error
    except OSError as error:
        raise ConnectionError(f"failed to read response from runtime: failed to read {part}: {error}") from error
