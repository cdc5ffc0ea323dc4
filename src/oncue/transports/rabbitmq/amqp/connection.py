"""The socket: opened, cut into frames, kept alive, and closed."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec
from pamqp import commands, frame, header
from pamqp.base import Frame
from pamqp.heartbeat import Heartbeat

from oncue.transports.rabbitmq.amqp import watchdog
from oncue.transports.rabbitmq.amqp.channel import Channel
from oncue.transports.rabbitmq.amqp.faults import (
    FRAME_ERROR,
    LOST,
    REPLY_SUCCESS,
    ChannelClosed,
    ConnectionClosed,
    MalformedError,
)

_FRAME = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_FRAME_MAX = 131_072
"""Bytes. What RabbitMQ offers unless told otherwise; larger ones bring nothing."""
_AT_ONCE = 65_536
"""With so many bytes to write, the end of the turn is not waited for, so that whoever writes without a pause is stopped."""
_BEATS = 3
"""In each heartbeat's time, so many are sent."""
_GRACE = 5.0
"""Seconds for the last bytes to go out after the server closed."""

_CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}

Method = TypeVar("Method", bound=Frame)


class Endpoint(msgspec.Struct, frozen=True):
    """Whom to connect to. `heartbeat` is in seconds, 0 is none, and the server may lower it; `timeout` is for all of it."""

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
    loop = asyncio.get_running_loop()
    connection = Connection()
    name = None if endpoint.ssl is None else endpoint.host
    try:
        async with asyncio.timeout(endpoint.timeout):
            await loop.create_connection(
                lambda: connection, endpoint.host, endpoint.port, ssl=endpoint.ssl, server_hostname=name
            )
            await connection.open(endpoint)
    except BaseException:
        connection.abort()
        raise
    return connection


class Connection(asyncio.Protocol):
    """Made by `connect`. `heartbeat` is in seconds, `blocked` is why the server lets nobody publish at the moment."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.server: Mapping[str, Any] = {}
        self.heartbeat, self.frame_max, self.channel_max = 0, _FRAME_MAX, 0
        self.blocked: str | None = None
        self.on_blocked: Callable[[str | None], None] | None = None
        self.closed: asyncio.Future[ConnectionClosed] = self._loop.create_future()
        self.ran = time.monotonic()  # when the event loop last had a turn
        self._fault: ConnectionClosed | None = None
        self._transport: asyncio.Transport | None = None
        self._channels: dict[int, Channel] = {}
        self._answer: asyncio.Future[Any] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._out: list[bytes] = []
        self._size = 0
        self._chunks: list[bytes] = []
        self._received = 0
        self._wanted = 8
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        # For heartbeats from the watchdog's thread: the socket once more, and the rest of one that went out in part.
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._owed = b""

    # Opening

    async def open(self, endpoint: Endpoint) -> None:
        """Introduce ourselves; for `connect`."""
        self.send(header.ProtocolHeader().marshal())
        start = await self._hear(commands.Connection.Start)
        self.server = start.server_properties or {}
        if "PLAIN" not in (start.mechanisms or "").split():
            raise ConnectionClosed(LOST, f"the server takes no passwords, only {start.mechanisms}")
        ours: dict[str, Any] = {"product": "OnCue", "platform": "Python", "connection_name": endpoint.name}
        secret = f"\0{endpoint.user}\0{endpoint.password}"
        self._say(commands.Connection.StartOk(ours | {"capabilities": _CAPABILITIES}, "PLAIN", secret, "en_US"))
        tune = await self._hear(commands.Connection.Tune)
        self.channel_max = tune.channel_max or 65_535
        self.frame_max = min(tune.frame_max or _FRAME_MAX, _FRAME_MAX)
        self.heartbeat = min(endpoint.heartbeat, tune.heartbeat or endpoint.heartbeat)
        self._say(commands.Connection.TuneOk(self.channel_max, self.frame_max, self.heartbeat))
        self._say(commands.Connection.Open(endpoint.vhost))
        await self._hear(commands.Connection.OpenOk)
        if self.heartbeat:
            self._tick()
            if endpoint.ssl is None:
                watchdog.watch(self)

    async def _hear(self, kind: type[Method]) -> Method:
        self._check()
        self._answer = self._loop.create_future()
        answer = await self._answer
        if not isinstance(answer, kind):
            raise ConnectionClosed(FRAME_ERROR, f"the server said {answer.name} where {kind.name} was due")
        return answer

    def _say(self, method: Frame) -> None:
        self.send(frame.marshal(method, 0))

    async def channel(self) -> Channel:
        """Open a channel. Raises `ConnectionClosed`, or `ChannelClosed` if there are too many."""
        self._check()
        number = next((number for number in range(1, self.channel_max + 1) if number not in self._channels), None)
        if number is None:
            raise ChannelClosed(LOST, f"all {self.channel_max} channels of the connection are in use")
        channel = self._channels[number] = Channel(self, number)
        try:
            await channel.call(commands.Channel.Open())
        except asyncio.CancelledError:
            channel.leave()
            raise
        return channel

    def release(self, number: int) -> None:
        """The channel's number may be used again; for the channel."""
        self._channels.pop(number, None)

    # Closing

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - what it waits for ends with it
        """Say goodbye and close; after `timeout` seconds without an answer, or cancelled, close at once. May be repeated."""
        reason = ConnectionClosed(REPLY_SUCCESS, "the connection was closed by this side")
        try:
            if self._fault is None:
                for channel in self._channels.values():
                    channel.stop(reason)
                self._say(commands.Connection.Close(REPLY_SUCCESS, "", 0, 0))
                await asyncio.wait([self.closed], timeout=timeout)
        finally:
            self._end(reason)

    def abort(self) -> None:
        """Close at once, without a word. May be repeated."""
        self._end(ConnectionClosed(REPLY_SUCCESS, "the connection was closed by this side"))

    def _end(self, fault: ConnectionClosed, *, gently: bool = False) -> None:
        """It is over: tell everyone."""
        if self._fault is not None:
            return
        self._fault = fault
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None and gently:
            self._flush()
            self._transport.close()
            self._loop.call_later(_GRACE, self._transport.abort)
        elif self._transport is not None:
            self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionClosed(*fault.args))
        for channel in self._channels.values():
            channel.end(fault)
        self._channels.clear()
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(fault)

    def _check(self) -> None:
        if self._fault is not None:
            raise ConnectionClosed(*self._fault.args)

    # Writing

    async def writable(self) -> None:
        """Return once the socket takes what is written; at once if it does. Raises `ConnectionClosed`."""
        if self._size > _AT_ONCE:
            self._flush()
        await self._writable.wait()
        self._check()

    def send(self, *frames: bytes) -> None:
        """Write whole frames, at the end of the loop's turn; for the channels."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frames

    def _flush(self) -> None:
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
        self.ran = time.monotonic()
        self._silent += 1
        # Turns are counted, not seconds: after the loop was held up, what has come meanwhile is yet to be read.
        if self._silent > 2 * _BEATS:
            self._end(ConnectionClosed(LOST, f"nothing was heard from the server for {2 * self.heartbeat} s"))
            return
        if self._writable.is_set():
            self.send(Heartbeat.value)
        self._timer = self._loop.call_later(self.heartbeat / _BEATS, self._tick)

    def beat(self) -> None:
        """Send a heartbeat past the event loop, if nothing is half sent; for the watchdog's thread."""
        with self._lock, suppress(OSError, RuntimeError):
            if self._line is not None and self._transport is not None and not self._transport.get_write_buffer_size():
                data = self._owed or Heartbeat.value
                self._owed = data[self._line.send(data) :]

    # What comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        if self._fault is not None:
            transport.abort()
        elif transport.get_extra_info("sslcontext") is None:
            # With no buffer of its own uvloop, too, writes at once and not at the end of a turn that may be long.
            transport.set_write_buffer_limits(0)
            self._line = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ConnectionClosed(LOST, f"the connection was lost: {error or 'the server closed it'}"))
        watchdog.forget(self)
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            return
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
            self._end(ConnectionClosed(FRAME_ERROR, f"what the server sent makes no sense: {error}"))
            return
        if rest < len(data):
            self._chunks.append(data[rest:])
            self._received = len(data) - rest

    def _cut(self, data: bytes) -> int:
        """Take the whole frames; where the rest begins."""
        position, length, channels = 0, len(data), self._channels
        while length - position > 7:
            kind, number, size = _FRAME.unpack_from(data, position)
            start = position + 7
            end = start + size
            if end >= length:
                if size > self.frame_max - 8 or kind not in {_METHOD, _HEADER, _BODY, _HEARTBEAT}:
                    raise MalformedError(f"a frame of kind {kind} with {size} bytes")
                self._wanted = end + 1 - position
                return position
            if data[end] != 0xCE:
                raise MalformedError("a frame has no end")
            position = end + 1
            if number:
                channel = channels.get(number)
                if channel is None:
                    raise MalformedError(f"a frame for channel {number}, which is not open")
                if kind == _METHOD:
                    channel.method(data, start, end)
                elif kind == _HEADER:
                    channel.header(data, start, end)
                elif kind == _BODY:
                    channel.body(data, start, end)
                else:
                    raise MalformedError(f"a frame of kind {kind}")
            elif kind == _METHOD:
                self._method(frame.unmarshal(data[start - 7 : position])[2])
            elif kind != _HEARTBEAT:
                raise MalformedError(f"a frame of kind {kind} for the connection itself")
            if self._fault is not None:
                return length
        self._wanted = 8
        return position

    def _method(self, method: Any) -> None:
        if method.name == "Connection.Close":
            fault = ConnectionClosed(method.reply_code, method.reply_text, method.class_id, method.method_id)
            self._say(commands.Connection.CloseOk())
            self._end(fault, gently=True)
        elif method.name == "Connection.CloseOk":
            self._end(ConnectionClosed(REPLY_SUCCESS, "the connection was closed by this side"))
        elif method.name in {"Connection.Blocked", "Connection.Unblocked"}:
            self.blocked = method.reason if method.name == "Connection.Blocked" else None
            if self.on_blocked is not None:
                self.on_blocked(self.blocked)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(method)
        else:
            raise MalformedError(f"{method.name} came where it answers nothing")
