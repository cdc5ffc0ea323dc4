"""Frames of the runtime's lasting protocol: what goes over one connection, and which answer belongs to which request.

For `oncue.workloads.socket`. docs/protocol-runtime.md has every frame. Nothing here looks into payloads.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from asyncio import CancelledError, Future
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from oncue.core.failure import Failure

PROTOCOL = 1

STOPPING_ERROR = "stopping_error"
"""The code of a request whose handler was not called, because the runtime is stopping."""

LENGTH = struct.Struct(">I")
HEAD = struct.Struct(">IBIII")
REST = HEAD.size - LENGTH.size
CALL, ENVELOPE, CANCEL, PING = 1, 2, 3, 4
_ITEM, _RESULT, _END, _ERROR, _PONG, _STOPPING = 16, 17, 18, 19, 20, 21
_LARGE = 65536


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
_decode_end = msgspec.json.Decoder(_Ended).decode
decode_hello = msgspec.json.Decoder(Hello).decode


def reply_of(text: bytes | memoryview) -> Reply:
    """The reply that an error in Asya's shape is."""
    fault = _decode_fault(text)
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


class Connection(asyncio.Protocol):
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
        if len(buffer) < LENGTH.size:
            return False
        end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            return False
        text = bytes(buffer[LENGTH.size : end])
        self._buffer = buffer[end:]
        try:
            hello = decode_hello(text)
        except msgspec.DecodeError:
            self._break(f"no hello but {text[:200]!r}")
            return False
        self.hello.set_result(hello)
        return True

    def _read(self) -> None:
        buffer, start = self._buffer, 0
        while len(buffer) - start >= HEAD.size:
            length, kind, id, number, head = HEAD.unpack_from(buffer, start)
            end = start + LENGTH.size + length
            if head > length - REST:
                self._break("a frame that cannot be")
                return
            if end > len(buffer):
                break
            middle = start + HEAD.size + head
            view = memoryview(buffer)
            first, rest = view[start + HEAD.size : middle].tobytes(), view[middle:end]
            large = end == len(buffer) and end - middle >= _LARGE  # then the buffer is handed over instead of a copy
            self._frame(kind, id, number, first, rest.toreadonly() if large else rest.tobytes())
            start = end
        self._buffer = buffer[start:] if start else buffer

    def _frame(self, kind: int, id: int, number: int, head: bytes, body: bytes | memoryview) -> None:
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
        self.write(HEAD.pack(REST + len(head) + size, kind, id, number, len(head)) + head, body, large=size >= _LARGE)
        try:
            return await future
        except CancelledError:
            if id in self.pending and self.lost is None:
                self.write(HEAD.pack(REST, CANCEL, id, 0, 0), b"")
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
