"""The metrics and the health of a process over HTTP: /metrics, /livez and /readyz."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from oncue.core.errors import ConfigError, InvalidValueError, TransportError
from oncue.dead import dead_queue_name, is_dead_queue
from oncue.health import Health
from oncue.metrics import CONTENT_TYPE, OPEN_METRICS, Metrics, QueueDepth, wants_open_metrics
from oncue.transports.base import Depth, Transport

_log = logging.getLogger("oncue.endpoints")

Depths = Callable[[], Awaitable[Mapping[str, QueueDepth]]]
"""Asked at each scrape how many messages there are, by queue; a queue that cannot be asked is left out."""

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/\s]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_PATIENCE = 3.0
"""Seconds that the depths may take: whoever scrapes gets all the rest without them after that."""
_LAST_WORDS = 1.0
"""Seconds that requests get to finish at the end."""


@asynccontextmanager
async def serve(address: str, health: Health, metrics: Metrics, depths: Depths | None = None) -> AsyncIterator[str]:
    """Answer on `address` while the block runs, which gets the address that is bound, with its real port.

    `:9000` means all addresses of this machine, `localhost:9000`, `127.0.0.1:9000` and `[::1]:9000` the one they name; port 0
    is any free one. Raise `InvalidValueError` for any other form, and `ConfigError` for an address that cannot be had.
    """
    host, port = _parse(address)
    endpoints = _Endpoints(health, metrics, depths)
    app = web.Application()
    app.router.add_get("/metrics", endpoints.metrics)
    app.router.add_get("/livez", endpoints.alive)
    app.router.add_get("/readyz", endpoints.ready)
    app.on_response_prepare.append(_name_no_versions)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_WORDS)
    await runner.setup()
    try:
        try:
            for bound in await _bind(host, port):
                await web.SockSite(runner, bound).start()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"metrics and health cannot be served on {address}: {_reason(error)}") from None
        yield _shown(host, runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def ask_depths(transport: Transport, queues: Sequence[str]) -> Mapping[str, QueueDepth]:
    """The depths of `queues` and of their dead queues. What the transport cannot say now is left out; never raises a
    `TransportError`. Safe to cancel."""
    found = await asyncio.gather(*(_depth(transport, queue) for queue in queues))
    return {queue: depth for queue, depth in zip(queues, found, strict=True) if depth is not None}


async def _depth(transport: Transport, queue: str) -> QueueDepth | None:
    try:
        depth = await transport.depth(queue)
        dead = None if is_dead_queue(queue) else await _dead(transport, queue)
    except TransportError as error:
        _log.debug("the depth of queue %s is not known now: %s", queue, error)
        return None
    return QueueDepth(depth.ready, depth.leased, depth.delayed, dead)


async def _dead(transport: Transport, queue: str) -> int | None:
    depth: Depth = await transport.depth(dead_queue_name(queue))
    if depth.ready is None:
        return None
    return depth.ready + (depth.leased or 0) + (depth.delayed or 0)


class _Endpoints:
    def __init__(self, health: Health, metrics: Metrics, depths: Depths | None) -> None:
        self._health = health
        self._metrics = metrics
        self._depths = depths

    async def metrics(self, request: web.Request) -> web.Response:
        wanted = wants_open_metrics(",".join(request.headers.getall("Accept", ())))
        text = self._metrics.expose(await self._ask(), open_metrics=wanted)
        kind = OPEN_METRICS if wanted else CONTENT_TYPE
        return web.Response(body=text, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    async def alive(self, request: web.Request) -> web.Response:
        return _answer(request, self._health.alive())

    async def ready(self, request: web.Request) -> web.Response:
        return _answer(request, self._health.ready())

    async def _ask(self) -> Mapping[str, QueueDepth] | None:
        if self._depths is None:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._depths()
        except TimeoutError:
            _log.debug("the depths of queues were not known in time")
        except Exception:  # the other metrics are needed most when something is broken
            _log.exception("the depths of queues could not be asked for")
        return None


def _answer(request: web.Request, reasons: Sequence[str]) -> web.Response:
    status = 503 if reasons else 200
    headers = {"Cache-Control": "no-store"}
    if "application/json" in request.headers.get("Accept", ""):
        said = {"status": "unavailable" if reasons else "ok", "reasons": list(reasons)}
        return web.json_response(said, status=status, headers=headers)
    return web.Response(text="\n".join(reasons or ["ok"]) + "\n", status=status, headers=headers)


async def _name_no_versions(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "oncue"


def _parse(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise InvalidValueError(
            f"address {address!r}: expected HOST:PORT, [IPV6]:PORT or :PORT with a port up to 65535"
        )
    return match["v6"] or match["host"], int(match["port"])


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _bind(host: str, port: int) -> Sequence[socket.socket]:
    """Sockets for all addresses that `host` stands for and this machine has; for one of them where any port will do."""
    if not host:
        return [_everywhere(port)]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    bound: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        if bound and not port:
            break
        try:
            bound.append(socket.create_server(address, family=family))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                for each in bound:
                    each.close()
                raise
            missing = error
    if missing is not None and not bound:
        raise missing
    return bound


def _everywhere(port: int) -> socket.socket:
    """A socket for all addresses, of both kinds where this machine has both."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
    return socket.create_server(("", port))


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "there is no such host"
    match error.errno:
        case errno.EADDRINUSE:
            return "another program uses this port"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case errno.EACCES:
            return "ports this low are not allowed to this user"
        case _:
            return error.strerror or str(error)
