"""The sidecar's metrics and health over HTTP, without a web server's size: a sidecar stands beside every single actor.

It answers GET and HEAD of a few paths, and closes the connection after each answer.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import msgspec

from oncue.core.errors import ConfigError, InvalidValueError

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/\s]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_ACCEPT = re.compile(rb"\r\naccept:([^\r]*)", re.IGNORECASE)
_LONGEST_HEAD = 16384
_PATIENCE = 10.0
"""Seconds that a client has to ask its question, and to take the answer."""


class Answer(msgspec.Struct, frozen=True):
    """What is answered to one request."""

    status: int
    body: bytes
    type: str = "text/plain; charset=utf-8"


Page = Callable[[str], Awaitable[Answer]]
"""Answers, given what the request says it accepts."""


@asynccontextmanager
async def serve(address: str, pages: Mapping[str, Page]) -> AsyncIterator[str]:
    """Answer with `pages` by path on `address` while the block runs, which gets the address with its real port.

    Raise `InvalidValueError` for what is no address, and `ConfigError` for one that cannot be had.
    """
    host, port = _parse(address)
    open_: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_serve(reader, writer, pages))
        open_.add(task)
        task.add_done_callback(open_.discard)

    try:
        server = await asyncio.start_server(begin, host, port, limit=_LONGEST_HEAD)
    except (OSError, UnicodeError) as error:
        reason = "it is taken" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
        raise ConfigError(f"metrics and health cannot be served on {address}: {reason}") from None
    try:
        bound = server.sockets[0].getsockname()[1]
        yield f"{address.rpartition(':')[0] or 'localhost'}:{bound}"
    finally:
        server.close()
        for task in list(open_):
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Mapping[str, Page]) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            method, _, rest = head.partition(b" ")
            path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
            answer = await _answer(method, path, b",".join(_ACCEPT.findall(head)).decode("latin-1"), pages)
            writer.write(_encode(answer, body=method != b"HEAD"))
            await writer.drain()
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return  # whoever asked has gone, or never asked
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(method: bytes, path: str, accept: str, pages: Mapping[str, Page]) -> Answer:
    page = pages.get(path)
    if page is None:
        return Answer(404, f"there are {', '.join(pages)}\n".encode())
    if method not in {b"GET", b"HEAD"}:
        return Answer(405, b"GET is all there is\n")
    return await page(accept)


def _encode(answer: Answer, *, body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (answer.body if body else b"")


def _parse(address: str) -> tuple[str | None, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise InvalidValueError(f"metrics {address!r}: expected HOST:PORT or :PORT with a port up to 65535")
    return match["v6"] or match["host"] or None, int(match["port"])
