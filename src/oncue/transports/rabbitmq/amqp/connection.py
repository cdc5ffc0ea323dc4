"""The socket: opened, cut into frames, kept alive, and closed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import msgspec
from pamqp import commands, frame, header
from pamqp.base import Frame
from pamqp.heartbeat import Heartbeat

from oncue.transports.rabbitmq.amqp.channel import END, METHOD, Channel
from oncue.transports.rabbitmq.amqp.faults import (
    CLOSED,
    FRAME_ERROR,
    LOST,
    ChannelClosed,
    ConnectionClosed,
    MalformedError,
)
from oncue.transports.rabbitmq.amqp.watchdog import watch

_log = logging.getLogger("oncue.transports.rabbitmq")

_FRAME = struct.Struct(">BHI")
_FRAME_MAX = 131_072
"""Bytes. What RabbitMQ offers unless told otherwise; larger ones bring nothing."""
_QUEUED = 65_536
"""Bytes. With more to write than this, whoever asks whether it may write is not told before it was tried."""
_BEATS = 3
"""So many heartbeats are sent in the time of one."""
_GRACE = 5.0
"""Seconds for the last bytes to go out after the server closed."""
_CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


class Endpoint(msgspec.Struct, frozen=True):
    """Whom to connect to. `heartbeat` is in seconds, 0 is none, the server may lower it; `timeout` is for opening, all in all."""

    host: str
    port: int
    user: str
    password: str
    vhost: str = "/"
    ssl: ssl.SSLContext | None = None
    heartbeat: int = 30
    timeout: float = 10.0
    name: str = "oncue"

    def __repr__(self) -> str:
        return f"Endpoint({self.user}@{self.host}:{self.port}/{self.vhost})"


async def connect(endpoint: Endpoint) -> Connection:
    """Open a connection. Raises `OSError`, `TimeoutError`, or `ConnectionClosed` with what the server said against it."""
    connection = Connection()
    try:
        async with asyncio.timeout(endpoint.timeout):
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, endpoint.host, endpoint.port, ssl=endpoint.ssl)
            await connection.open(endpoint)
    except BaseException:
        connection.abort()
        raise
    return connection


class Connection(asyncio.Protocol):
    """Made by `connect`. `heartbeat` is in seconds; `blocked` is why the server lets nobody publish now, or None."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.server: Mapping[str, Any] = {}
        self.heartbeat, self.frame_max, self.channel_max = 0, _FRAME_MAX, 0
        self.blocked: str | None = None
        self.on_blocked: Callable[[str | None], object] = lambda _reason: None
        self.closed: asyncio.Future[ConnectionClosed] = self._loop.create_future()
        self.channels: dict[int, Channel] = {}  # by their numbers; for themselves
        self.queued = 0  # bytes that they published in this turn of the loop
        self._fault: ConnectionClosed | None = None
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Any] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._out: list[bytes] = []
        self._chunks: list[bytes] = []  # the beginning of a frame, and how long they are and must be
        self._received, self._wanted = 0, _FRAME.size
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        # For heartbeats from the watchdog's thread: the socket once more, and the rest of one that went out in part.
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._owed = b""
        self._ran = 0.0

    async def open(self, endpoint: Endpoint) -> None:
        """Introduce ourselves; for `connect`."""
        self.send(header.ProtocolHeader().marshal())
        start = await self._hear("Connection.Start")
        self.server = start.server_properties or {}
        if "PLAIN" not in (start.mechanisms or "").split():
            raise ConnectionClosed(LOST, f"the server takes no passwords, only {start.mechanisms}")
        ours: dict[str, Any] = {"product": "OnCue", "platform": "Python", "connection_name": endpoint.name}
        secret = f"\0{endpoint.user}\0{endpoint.password}"
        self._say(commands.Connection.StartOk(ours | {"capabilities": _CAPABILITIES}, "PLAIN", secret, "en_US"))
        tune = await self._hear("Connection.Tune")
        self.channel_max = tune.channel_max or 65_535
        self.frame_max = min(tune.frame_max or _FRAME_MAX, _FRAME_MAX)
        self.heartbeat = min(endpoint.heartbeat, tune.heartbeat or endpoint.heartbeat)
        self._say(commands.Connection.TuneOk(self.channel_max, self.frame_max, self.heartbeat))
        self._say(commands.Connection.Open(endpoint.vhost))
        await self._hear("Connection.OpenOk")
        if self.heartbeat:
            self._tick()
        if self.heartbeat and self._transport is not None and endpoint.ssl is None:
            self._line = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
            watch(self)

    async def _hear(self, name: str) -> Any:
        self._check()
        self._answer = self._loop.create_future()
        answer = await self._answer
        self._check()
        if answer.name != name:
            raise ConnectionClosed(FRAME_ERROR, f"the server said {answer.name} where {name} was due")
        return answer

    def _say(self, method: Frame) -> None:
        self.send(frame.marshal(method, 0))

    async def channel(self) -> Channel:
        """Open a channel. Raises `ConnectionClosed`, or `ChannelClosed` if there are too many."""
        self._check()
        number = next((number for number in range(1, self.channel_max + 1) if number not in self.channels), None)
        if number is None:
            raise ChannelClosed(LOST, f"all {self.channel_max} channels of the connection are in use")
        channel = self.channels[number] = Channel(self, number)
        try:
            await channel.call(commands.Channel.Open())
        except asyncio.CancelledError:
            channel.leave()
            raise
        return channel

    # Closing

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - it is no error to reach it
        """Say goodbye and close; after `timeout` seconds without an answer, or cancelled, close at once. May be repeated."""
        reason = ConnectionClosed(CLOSED, "the connection was closed by this side")
        try:
            if self._fault is None:
                for channel in self.channels.values():
                    channel.stop(reason)
                self._say(commands.Connection.Close(CLOSED, "", 0, 0))
                await asyncio.wait([self.closed], timeout=timeout)
        finally:
            self._end(reason)

    def abort(self) -> None:
        """Close at once, without a word. May be repeated."""
        self._end(ConnectionClosed(CLOSED, "the connection was closed by this side"))

    def _end(self, fault: ConnectionClosed) -> None:
        """It is over: tell everyone."""
        if self._fault is not None:
            return
        self._fault = fault
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(fault.again())
        for channel in self.channels.values():
            channel.end(fault)
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(fault)

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault.again()

    # Writing

    async def writable(self) -> None:
        """Return once the socket takes what is written; at once if it does. Raises `ConnectionClosed`."""
        if self.queued > _QUEUED:
            self._flush()
        await self._writable.wait()
        self._check()

    def send(self, *frames: bytes) -> None:
        """Write whole frames, at the end of the loop's turn; for the channels."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frames

    def _flush(self) -> None:
        self.queued = 0
        if self._out and self._transport is not None:
            with self._lock:
                data, self._owed = b"".join((self._owed, *self._out)), b""
                self._out.clear()
                self._transport.write(data)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # Heartbeats

    def _tick(self) -> None:
        self._ran = time.monotonic()
        self._silent += 1
        # Turns are counted, not seconds: after the loop was held up, what has come meanwhile is yet to be read.
        if self._silent > 2 * _BEATS:
            self._end(ConnectionClosed(LOST, f"nothing was heard from the server for {2 * self.heartbeat} s"))
            return
        if self._writable.is_set():
            self.send(Heartbeat.value)
        self._timer = self._loop.call_later(self.heartbeat / _BEATS, self._tick)

    def beat(self) -> bool:
        """Send a heartbeat past the loop if that is held up and nothing is half sent; for the watchdog's thread."""
        with self._lock:
            if self._line is None or self._transport is None:
                return False
            if self._loop.is_closed():
                self._line.close()
                return False
            late = self._loop.is_running() and time.monotonic() - self._ran > self.heartbeat / 2
            if late and not self._transport.get_write_buffer_size():
                with suppress(OSError):
                    data = self._owed or Heartbeat.value
                    self._owed = data[self._line.send(data) :]
            return True

    # What comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        if transport.get_extra_info("sslcontext") is None:
            # Without it some uvloops write at the end of a turn, which may take minutes, and nobody could beat till then.
            transport.set_write_buffer_limits(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionClosed(LOST, f"the connection was lost: {exc or 'the server closed it'}"))

    def data_received(self, data: bytes) -> None:
        self._silent = 0
        if self._chunks:
            self._chunks.append(data)
            self._received += len(data)
            if self._received < self._wanted:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        try:
            rest = self._cut(data)
        except Exception as error:
            _log.exception("what the server sent could not be read")
            self._end(ConnectionClosed(FRAME_ERROR, f"what the server sent could not be read: {error!r}"))
            return
        if rest < len(data):
            self._chunks.append(data[rest:])
            self._received = len(data) - rest

    def _cut(self, data: bytes) -> int:
        """Take the whole frames; where the rest begins."""
        position, length, channels = 0, len(data), self.channels
        while length - position >= _FRAME.size and self._fault is None:
            kind, number, size = _FRAME.unpack_from(data, position)
            start = position + 7
            end = start + size
            if end > start + self.frame_max - 8 or not 0 < kind < 9:
                raise MalformedError(f"a frame of kind {kind} with {size} bytes is not AMQP 0-9-1")
            if end >= length:
                self._wanted = end + 1 - position
                return position
            if data[end] != END:
                raise MalformedError("a frame that is not closed")
            if number in channels:
                position = channels[number].take(kind, data, start, end)
                continue
            position = end + 1
            if number or kind not in {METHOD, 8}:
                raise MalformedError(f"a frame of kind {kind} for channel {number}, where none was due")
            if kind == METHOD:
                self._method(frame.unmarshal(data[start - 7 : position])[2])
        self._wanted = _FRAME.size
        return position

    def _method(self, method: Any) -> None:
        match method.name:
            case "Connection.Close":
                self._say(commands.Connection.CloseOk())
                self._flush()
                self._end(ConnectionClosed(method.reply_code, method.reply_text, method.class_id, method.method_id))
            case "Connection.CloseOk":
                self.abort()
            case "Connection.Blocked" | "Connection.Unblocked":
                self.blocked = method.reason if method.name == "Connection.Blocked" else None
                self.on_blocked(self.blocked)
            case _ if self._answer is not None and not self._answer.done():
                self._answer.set_result(method)
            case name:
                raise MalformedError(f"{name} came where it answers nothing")
