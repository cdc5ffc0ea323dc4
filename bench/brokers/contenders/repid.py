"""Repid on Redis; its AMQP 1.0 needs RabbitMQ 4. A claim of what crashed workers left behind every half minute, which it does not
do by itself, uvloop, and as many tasks at a time and messages at a read as drain fastest here. It has no call for many.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bench.brokers.contest import Calls

NAME = "Repid"
PACKAGES = {"redis": ("repid", "redis", "uvloop")}
MODES = {"redis": {"concurrent": 1.0}}
SENDERS = 20
CHOICES = {"redis": ("10 at a time, read 100", "20 at a time, read 256", "50 at a time, read 256")}


def _app(url: str, read: int = 256) -> Any:
    from repid import RedisServer, Repid

    app = Repid(title="bench", version="1")
    server = RedisServer(url, batch_size=read, claim_interval=30.0)
    app.servers.register_server("default", server, is_default=True)
    return app


@asynccontextmanager
async def sender(url: str, _mode: str) -> AsyncIterator[Calls]:
    app = _app(url)

    async def one(number: int) -> None:
        await app.send_message_json(channel="work", payload={"number": number}, headers={"topic": "noop"})

    async with app.servers.default.connection():
        yield Calls(one)


@asynccontextmanager
async def worker(url: str, add: Callable[[int], None], choice: str = "20 at a time, read 256") -> AsyncIterator[None]:
    from repid import Router

    at_once, _, read = choice.partition(" at a time, read ")
    app = _app(url, int(read))
    router = Router()

    @router.actor(channel="work")
    async def noop(number: int) -> None:
        add(number)

    app.include_router(router)
    async with app.servers.default.connection():
        running = asyncio.create_task(app.run_worker(tasks_limit=int(at_once)))
        yield
        signal.raise_signal(signal.SIGTERM)  # there is no other way to end it in order
        await running
