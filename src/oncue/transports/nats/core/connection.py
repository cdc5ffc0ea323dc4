"""The socket: opened, cut into messages, watched, and closed. Whoever asks for something is told once what came of it.

All that is written in one turn of the loop goes out at once. Everything here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import ssl
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec

from oncue.transports.nats.core.faults import ClosedError, DeniedError, SilentError
from oncue.transports.nats.core.futures import tell
from oncue.transports.nats.core.login import Login

_log = logging.getLogger("oncue.transports.nats")

_LONGEST_LINE = 65_536
"""Bytes. The server's INFO, which tells all of a cluster, is the longest line."""
_LOOKS = 4
"""So many looks at what is overdue are made in the time that an answer may take."""
_QUIET = 10.0
"""Seconds without a word after which the server is asked whether it is there; shorter than what firewalls forget."""
_GOODBYE, _GONE = 1.0, 0.2
"""Seconds within which the socket has to be closed: after what was to be written, and after a hang-up at once."""
_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
_REFUSED = re.compile(r"authorization|authentication|account|permission|jwt|nkey|credential", re.IGNORECASE)

Heard = Callable[[bytes, bytes, bytes, bytes], object]
"""Is given subject, reply subject, headers and body of a message."""
Answer = Callable[[bytes, bytes, Exception | None], object]
"""Is given headers and body of an answer, or `ClosedError`, `DeniedError` or `SilentError`; once."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to connect to. With `ssl` the connection has to be encrypted. `opening` and `timeout` are the
    seconds that it may take to get there, all in all, and to be answered."""

    host: str
    port: int
    login: Login = Login()
    ssl: ssl.SSLContext | None = None
    handshake_first: bool = False
    inbox: str = "_INBOX"
    opening: float = 10.0
    timeout: float = 10.0


class _Asked(msgspec.Struct, gc=False):
    subject: bytes
    since: float
    answer: Answer


async def connect(endpoint: Endpoint) -> Connection:
    """Open a connection. Raises `OSError`, `TimeoutError`, `ClosedError`, and what `Login.words` raises."""
    connection = Connection(endpoint)
    try:
        async with asyncio.timeout(endpoint.opening):
            loop = asyncio.get_running_loop()
            first = endpoint.ssl if endpoint.handshake_first else None
            await loop.create_connection(lambda: connection, endpoint.host, endpoint.port, ssl=first)
            await connection.open()
    except BaseException:
        await connection.abort()
        raise
    return connection


class Connection(asyncio.Protocol):
    """Made by `connect`. `info` is what the server said of itself."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self.info: dict[str, Any] = {}
        self.closed: Future[ClosedError] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._lost: Future[None] = self._loop.create_future()
        self._introduced: Future[None] = self._loop.create_future()
        self._said: str | None = None  # the last error that the server told
        self._handlers: dict[int, Heard] = {}
        self._last_sid = 0
        self._inbox = f"{endpoint.inbox}.{secrets.token_hex(8)}".encode()
        self._asked: dict[bytes, _Asked] = {}
        self._last_token = 0
        self._pongs: deque[Callable[[], object]] = deque()
        self._probed: float | None = None
        self._heard = 0.0
        self._look: TimerHandle | None = None
        self._out: list[bytes] = []
        self._chunks: list[bytes] = []  # the beginning of a message, how long it is, and has to be
        self._received, self._wanted = 0, 0

    async def open(self) -> None:
        """Introduce ourselves; for `connect`."""
        endpoint = self._endpoint
        await self._introduced
        required = bool(self.info.get("tls_required"))
        if endpoint.ssl is not None and not endpoint.handshake_first and not required:
            if not self.info.get("tls_available"):
                raise ClosedError("the server does not encrypt")
            required = True
        if required and not endpoint.handshake_first:
            await self._encrypt(endpoint.ssl or ssl.create_default_context())
        words = {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "1",
            "name": "oncue",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "echo": True,
            "tls_required": required or endpoint.handshake_first,
            **endpoint.login.words(self.info),
        }
        there: Future[None] = self._loop.create_future()
        self.closed.add_done_callback(lambda _: tell(there))
        self.send(b"CONNECT %b\r\n" % msgspec.json.encode(words))
        self.ping(partial(tell, there))
        await there
        if self.closed.done():
            raise self.closed.result()
        self._last_sid = 1
        self._handlers[1] = self._answered
        self.send(b"SUB %b.* 1\r\n" % self._inbox)
        self._heard = self._loop.time()
        self._on_look()

    async def close(self) -> None:
        """Write what is to be written, hang up, and return when the socket is closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._flush()
            self._transport.close()
            self._end(ClosedError("closed"))
            await asyncio.wait([self._lost], timeout=_GOODBYE)  # with TLS the server says goodbye too, if it still can
        await self.abort()

    async def abort(self) -> None:
        """Hang up at once, and return when the socket is closed."""
        self._end(ClosedError("closed"))
        if self._transport is not None and not self._lost.done():
            self._transport.abort()
            await asyncio.wait([self._lost], timeout=_GONE)

    # Speaking

    def publish(self, subject: bytes, body: bytes, header: bytes = b"") -> None:
        """Write it; nobody tells whether it arrived."""
        if header:
            size = len(header)
            self.send(b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, size, size + len(body), header, body))
        else:
            self.send(b"PUB %b %d\r\n%b\r\n" % (subject, len(body), body))

    def ask(self, subject: bytes, body: bytes, answer: Answer, header: bytes = b"") -> None:
        """Write it, and have `answer` told what somebody replies, in a later turn of the loop."""
        self._last_token += 1
        token = b"%x" % self._last_token
        if self.closed.done():
            self._loop.call_soon(answer, b"", b"", self.closed.result())
            return
        self._asked[token] = _Asked(subject, self._loop.time(), answer)
        inbox = self._inbox
        if header:
            size = len(header)
            self.send(
                b"HPUB %b %b.%b %d %d\r\n%b%b\r\n" % (subject, inbox, token, size, size + len(body), header, body)
            )
        else:
            self.send(b"PUB %b %b.%b %d\r\n%b\r\n" % (subject, inbox, token, len(body), body))

    def subscribe(self, heard: Heard) -> tuple[int, bytes]:
        """Hear what is sent to a subject of this connection's own; its number, and the subject without the last word."""
        self._last_sid += 1
        sid = self._last_sid
        self._handlers[sid] = heard
        subject = b"%b.s%d" % (self._inbox, sid)
        self.send(b"SUB %b.* %d\r\n" % (subject, sid))
        return sid, subject

    def unsubscribe(self, sid: int, done: Callable[[], object]) -> None:
        """Hear no more; `done` is told when nothing can come, unless the connection ends before that."""

        def over() -> None:
            self._handlers.pop(sid, None)
            done()

        self.send(b"UNSUB %d\r\n" % sid)
        self.ping(over)

    def ping(self, done: Callable[[], object]) -> None:
        """Have `done` told when the server has read all that was written up to now."""
        self._pongs.append(done)
        self.send(b"PING\r\n")

    def send(self, line: bytes) -> None:
        """Write it in this turn of the loop, with all else."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(line)

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        said = self._said
        text = said or (str(error) or type(error).__name__ if error is not None else "the server hung up")
        self._end(ClosedError(text, denied=said is not None and _REFUSED.search(said) is not None))
        tell(self._lost)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        if self._received:
            self._chunks.append(data)
            self._received += len(data)
            if self._received < self._wanted:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._received = 0
        try:
            read = self._read(data)
        except Exception as error:  # also a fault of ours must leave nobody waiting for an answer
            _log.error("an answer of the server could not be understood", exc_info=error)
            self._fail(ClosedError(f"an answer that makes no sense: {error}"))
            return
        rest = len(data) - read
        if rest:
            self._chunks.append(data[read:] if read else data)
            self._received = rest

    # Inside

    def _read(self, data: bytes) -> int:
        """Deal with all that is whole; how many bytes that was."""
        at, size = 0, len(data)
        self._wanted = 0
        handlers = self._handlers
        while at < size:
            end = data.find(b"\r\n", at)
            if end < 0:
                if size - at > _LONGEST_LINE:
                    raise ValueError("a line without an end")
                break
            kind = data[at]
            if kind == 72:  # HMSG subject sid [reply] headers all
                words = data[at + 5 : end].split()
                start = end + 2
                stop = start + int(words[-1])
                if stop + 2 > size:
                    self._wanted = stop + 2 - at
                    break
                body = start + int(words[-2])
                handler = handlers.get(int(words[1]))
                if handler is not None:
                    handler(words[0], words[2] if len(words) == 5 else b"", data[start:body], data[body:stop])
                at = stop + 2
            elif kind == 77:  # MSG subject sid [reply] all
                words = data[at + 4 : end].split()
                start = end + 2
                stop = start + int(words[-1])
                if stop + 2 > size:
                    self._wanted = stop + 2 - at
                    break
                handler = handlers.get(int(words[1]))
                if handler is not None:
                    handler(words[0], words[2] if len(words) == 4 else b"", b"", data[start:stop])
                at = stop + 2
            else:
                self._hear(data[at:end])
                at = end + 2
        return at

    def _hear(self, line: bytes) -> None:
        word = line[:4].upper()
        if word == b"PONG":
            self._probed = None
            if self._pongs:
                self._pongs.popleft()()
        elif word == b"PING":
            self.send(b"PONG\r\n")
        elif word == b"INFO":
            self.info = msgspec.json.decode(line[5:])
            tell(self._introduced)
        elif word == b"-ERR":
            self._refused(line[4:].strip().strip(b"'").decode(errors="replace"))
        elif word != b"+OK":
            raise ValueError(f"{line[:20]!r} is no word of the protocol")

    def _refused(self, text: str) -> None:
        denied = _DENIED.search(text)
        if denied is None:
            self._said = text  # after most of these it hangs up
            return
        subject = denied[2].encode()
        _log.debug("the server: %s", text)
        for token, asked in [each for each in self._asked.items() if each[1].subject == subject]:
            del self._asked[token]
            asked.answer(b"", b"", DeniedError(text))
        if denied[1].lower() != "publish":
            self._said = text
            self._fail(ClosedError(text, denied=True))

    def _answered(self, subject: bytes, _reply: bytes, header: bytes, body: bytes) -> None:
        asked = self._asked.pop(subject[subject.rfind(b".") + 1 :], None)
        if asked is not None:
            asked.answer(header, body, None)

    async def _encrypt(self, context: ssl.SSLContext) -> None:
        assert self._transport is not None
        transport = await self._loop.start_tls(
            self._transport, self, context, server_hostname=self._endpoint.host if context.check_hostname else None
        )
        if transport is None:
            raise ClosedError("the connection was closed while it was to be encrypted")
        self._transport = transport

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _on_look(self) -> None:
        """Leave nobody waiting for an answer that does not come, nor for a server that is not there any more."""
        timeout = self._endpoint.timeout
        self._look = self._loop.call_later(min(timeout, _QUIET) / _LOOKS, self._on_look)
        now = self._loop.time()
        late = []
        for token, asked in self._asked.items():  # the oldest come first
            if asked.since + timeout > now:
                break
            late.append(token)
        for token in late:
            self._asked.pop(token).answer(b"", b"", SilentError(f"no answer within {timeout:g} s"))
        if self._probed is not None and now - self._probed > timeout and now - self._heard > timeout:
            self._fail(ClosedError(f"no word within {timeout:g} s"))
        elif self._probed is None and now - self._heard > min(timeout / 2 if self._asked else _QUIET, _QUIET):
            self._probed = now
            self.ping(lambda: None)

    def _fail(self, error: ClosedError) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end(error)

    def _end(self, error: ClosedError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(error)
        if self._look is not None:
            self._look.cancel()
        if not self._introduced.done():
            self._introduced.set_exception(error)
            self._introduced.exception()  # nobody may wait for it
        asked, self._asked = self._asked, {}
        self._handlers.clear()
        self._pongs.clear()
        for each in asked.values():
            self._loop.call_soon(partial(each.answer, b"", b"", error))
