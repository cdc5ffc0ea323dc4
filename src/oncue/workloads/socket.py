"""The near end of a runtime's socket: one lasting connection with many requests in flight, or Asya's one for each message.

docs/protocol-runtime.md says what goes over it. Nothing here looks into payloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from asyncio import CancelledError, Future
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Raw

from oncue.core.failure import Failure

PROTOCOL = 1
READY_FILE = "runtime-ready"
ERROR_FILE = "runtime-error"

STOPPING_ERROR = "stopping_error"
"""The code of a request whose handler was not called, because the runtime is stopping."""

_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">IBIII")
_REST = _HEAD.size - _LENGTH.size
_CALL, _ENVELOPE, _CANCEL, _PING = 1, 2, 3, 4
_ITEM, _RESULT, _END, _ERROR, _PONG, _STOPPING = 16, 17, 18, 19, 20, 21
_LARGE = 65536
_NO_HEAD = b""


class Hello(msgspec.Struct, frozen=True):
    """How a runtime introduces itself. `concurrency` is how many requests it works on at the same time."""

    oncue: int
    python: str
    handler: str
    mode: str
    concurrency: int
    processes: int = 1
    timeout: float | None = None
    frame_limit: int = 2**32 - 64
    pid: int = 0


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item of a result. `fields` is the JSON of the rest of its envelope in envelope mode, else empty."""

    payload: Raw
    fields: bytes = b""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler sent besides its result."""

    actor: str
    id: str
    payload: Raw
    route: tuple[str, ...] = ()
    delay: float = 0.0
    key: str | None = None
    headers: Mapping[str, Any] | None = None


class Reply(msgspec.Struct, frozen=True):
    """What came of a request: items and what was sent besides, or a failure.

    `bystander` says that another request ended the process, so this attempt need not count; `suspects` is how many
    requests were running in a process that died, when it cannot be told which one was the reason.
    """

    items: tuple[Item, ...] = ()
    sends: tuple[Sent, ...] = ()
    failure: Failure | None = None
    bystander: bool = False
    suspects: int = 1


class _Details(msgspec.Struct):
    message: str = ""
    type: str = ""
    traceback: str = ""
    retry_after: float | None = None
    dead: bool = False
    bases: tuple[str, ...] = ()
    bystander: bool = False
    suspects: int = 1


class _Fault(msgspec.Struct):
    error: str
    details: _Details = msgspec.field(default_factory=_Details)


class _Ended(msgspec.Struct):
    sends: tuple[Sent, ...] = ()


_decode_fault = msgspec.json.Decoder(_Fault).decode
_decode_faults = msgspec.json.Decoder(list[_Fault]).decode
_decode_end = msgspec.json.Decoder(_Ended).decode
_decode_hello = msgspec.json.Decoder(Hello).decode


def reply_of(fault: bytes) -> Reply:
    """The reply that an error in Asya's shape is."""
    return _failed(_decode_fault(fault))


def _failed(fault: _Fault) -> Reply:
    told = fault.details
    failure = Failure(
        fault.error, told.type, told.message, told.traceback, told.retry_after, final=told.dead, bases=told.bases
    )
    return Reply(failure=failure, bystander=told.bystander, suspects=told.suspects)


class _Pending:
    """A request without an answer yet. `on_item` gets what is yielded as it comes, else it is collected."""

    __slots__ = ("future", "items", "on_item")

    def __init__(self, future: Future[Any], on_item: Callable[[Item], None] | None) -> None:
        self.future = future
        self.on_item = on_item
        self.items: list[Item] = []

    def take(self, item: Item) -> None:
        if self.on_item is None:
            self.items.append(item)
        elif not self.future.done():
            self.on_item(item)


class _Connection(asyncio.Protocol):
    """Frames in and out. What is written in one turn of the event loop leaves in one piece."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.hello: Future[Hello] = self.loop.create_future()
        self.closed: Future[None] = self.loop.create_future()
        self.pending: dict[int, _Pending] = {}
        self.stopping = False
        self.lost: str | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer: bytes | bytearray = b""
        self._out: list[bytes | Raw] = []
        self._writable: asyncio.Event = asyncio.Event()
        self._writable.set()
        self._ids = itertools.count(1)

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or (f"the runtime hung up: {exc}" if exc else "the runtime hung up")
        if not self.hello.done():
            self.hello.set_exception(ConnectionResetError(self.lost))
        for pending in self.pending.values():
            if not pending.future.done():
                pending.future.set_exception(ConnectionResetError(self.lost))
        self.pending.clear()
        self._writable.set()
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        else:
            self._buffer = data
        if not self.hello.done() and not self._greeted():
            return
        self._read()

    # Reading

    def _greeted(self) -> bool:
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return False
        end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            return False
        text = bytes(buffer[_LENGTH.size : end])
        self._buffer = buffer[end:]
        try:
            hello = _decode_hello(text)
        except msgspec.DecodeError:
            self._break(f"no hello but {text[:200]!r}")
            return False
        self.hello.set_result(hello)
        return True

    def _read(self) -> None:
        buffer, start = self._buffer, 0
        while len(buffer) - start >= _HEAD.size:
            length, kind, id, number, head = _HEAD.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if head > length - _REST:
                self._break("a frame that cannot be")
                return
            if end > len(buffer):
                break
            middle = start + _HEAD.size + head
            with memoryview(buffer) as view:
                first, rest = view[start + _HEAD.size : middle].tobytes(), view[middle:end].tobytes()
            self._frame(kind, id, number, first, rest)
            start = end
        self._buffer = buffer[start:] if start else buffer

    def _frame(self, kind: int, id: int, number: int, head: bytes, body: bytes) -> None:
        if kind == _STOPPING:
            self.stopping = True
        pending = self.pending.get(id)
        if pending is None:
            return
        if kind == _ITEM:
            pending.take(Item(Raw(body), head))
            return
        del self.pending[id]
        if pending.future.done():
            return
        if kind == _RESULT:
            item = Item(Raw(body), head)
            if pending.on_item is None:
                pending.future.set_result(Reply((item,)))
                return
            pending.take(item)
            pending.future.set_result(Reply())
        elif kind == _END:
            sends = _decode_end(head).sends if head else ()
            pending.future.set_result(Reply(tuple(pending.items), sends))
        elif kind == _ERROR:
            pending.future.set_result(reply_of(head or body))
        elif kind == _PONG:
            pending.future.set_result(number)

    def _break(self, why: str) -> None:
        self.lost = f"the runtime sent {why}"
        if self._transport is not None:
            self._transport.abort()

    # Writing

    async def ask(
        self,
        kind: int,
        number: int,
        head: bytes,
        body: bytes | Raw,
        on_item: Callable[[Item], None] | None = None,
    ) -> Any:
        if not self._writable.is_set():
            await self._writable.wait()
        if self.lost is not None:
            raise ConnectionResetError(self.lost)
        id = next(self._ids) & 0xFFFFFFFF
        while id in self.pending:
            id = next(self._ids) & 0xFFFFFFFF
        future: Future[Any] = self.loop.create_future()
        self.pending[id] = _Pending(future, on_item)
        size = len(memoryview(body)) if isinstance(body, Raw) else len(body)
        self.write(_HEAD.pack(_REST + len(head) + size, kind, id, number, len(head)) + head, body, large=size >= _LARGE)
        try:
            return await future
        except CancelledError:
            if id in self.pending and self.lost is None:
                self.write(_HEAD.pack(_REST, _CANCEL, id, 0, 0), b"")
            raise

    def write(self, first: bytes, rest: bytes | Raw, *, large: bool = False) -> None:
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(first)
        if large:
            self._flush()
            if self._transport is not None:
                self._transport.write(memoryview(rest))
        elif rest:
            self._out.append(rest)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and self.lost is None:
            self._transport.write(b"".join(out))

    def close(self) -> None:
        self.lost = self.lost or "the connection was closed"
        if self._transport is not None:
            self._flush()
            self._transport.close()


class RuntimeClient:
    """A lasting connection to one of our runtimes. Made by `connect`; closed by `close`, or as an async context manager."""

    def __init__(self, connection: _Connection, hello: Hello) -> None:
        self._connection = connection
        self.hello = hello

    @classmethod
    async def connect(cls, path: Path | str, *, handler_timeout: float | None = None, kill: bool = False) -> Self:
        """Connect and exchange hellos. May be cancelled.

        `handler_timeout` is how many seconds a handler may take unless a call says otherwise. With `kill`, synchronous handlers
        that still run when this client hangs up are ended with their processes. Raise `OSError` when there is nobody,
        and `ConnectionResetError` when who answers is no runtime of ours.
        """
        connection = _Connection()
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, str(path))
        fields: dict[str, Any] = {"oncue": PROTOCOL}
        if handler_timeout is not None:
            fields["timeout"] = handler_timeout
        if kill:
            fields["kill"] = True
        text = msgspec.json.encode(fields)
        connection.write(_LENGTH.pack(len(text)), text)
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
        fields: bytes = _NO_HEAD,
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
        reply: Reply = await self._connection.ask(_ENVELOPE if envelope else _CALL, number, fields, body, on_item)
        return reply

    async def ping(self) -> int:
        """How many requests of this connection the runtime has in hand. Answered also while handlers run."""
        number: int = await self._connection.ask(_PING, 0, b"", b"")
        return number - 0

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
        hello = _decode_hello(line)
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

    Raise `TimeoutError` when it takes more than `within` seconds in all, or `ConnectionError` with Asya's text for what went wrong.
    """
    async with asyncio.timeout(within):
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError as error:
            raise ConnectionError(f"failed to connect to runtime socket: {error}") from error
        try:
            return await _exchanged(reader, writer, body)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    try:
        writer.write(_LENGTH.pack(len(body)))
        writer.write(body)
        await writer.drain()
    except OSError as error:
        raise ConnectionError(f"failed to send message to runtime: failed to write data: {error}") from error
    part = "length prefix"
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        part = "data"
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError(f"failed to read response from runtime: failed to read {part}: EOF") from error
    except OSError as error:
        raise ConnectionError(f"failed to read response from runtime: failed to read {part}: {error}") from error


def faults_of(answer: bytes) -> Sequence[Reply]:
    """The errors among the items of a one-shot answer, which stand alone in it when our runtime made it."""
    return [_failed(fault) for fault in _decode_faults(answer)]
