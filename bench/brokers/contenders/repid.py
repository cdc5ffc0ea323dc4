"""Repid on Redis and SQS; its AMQP 1.0 needs RabbitMQ 4. A claim of what crashed workers left behind every half minute, which it does not
do by itself, uvloop, and as many tasks at a time and messages at a read as drain fastest here. It has no call for many.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bench.brokers.contenders import on_pubsub
from bench.brokers.contenders.bare import endpoint_of, sqs_queue
from bench.brokers.contest import Calls

NAME = "Repid"
PACKAGES = {
    "redis": ("repid", "redis", "uvloop"),
    "sqs": ("repid", "aiobotocore", "uvloop"),
    "pubsub": ("repid", "grpcio", "uvloop"),
}
MODES = {"redis": {"concurrent": 1.0}, "sqs": {"concurrent": 0.3}, "pubsub": {"concurrent": 1.0}}
SENDERS = 20
CHOICES = {
    "redis": ("10 at a time, read 100", "20 at a time, read 256", "50 at a time, read 256"),
    "sqs": ("20 at a time, read 10", "100 at a time, read 10"),
    "pubsub": ("100 at a time, read 256", "1000 at a time, read 256"),
}


def _server(url: str, read: int) -> Any:
    if url.startswith("pubsub"):
        return on_pubsub.repid_server(url)
    from repid import RedisServer

    if not url.startswith("sqs"):
        return RedisServer(url, batch_size=read, claim_interval=30.0)
    from repid.connections.sqs import SqsServer

    return SqsServer(
        endpoint_of(url),
        "eu-west-1",
        batch_size=read,
        receive_wait_time_seconds=1,
        dlq_queue_strategy=None,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


def _app(url: str, read: int = 256) -> Any:
    from repid import Repid

    app = Repid(title="bench", version="1")
    server = _server(url, read)
    app.servers.register_server("default", server, is_default=True)
    return app


async def _make_queue(url: str) -> None:
    """Where it has to be there before."""
    if url.startswith("pubsub"):
        on_pubsub.make_queue(url)
    if url.startswith("sqs"):
        async with sqs_queue(url):
            pass


@asynccontextmanager
async def sender(url: str, _mode: str) -> AsyncIterator[Calls]:
    app = _app(url, 10 if url.startswith("sqs") else 256)
    await _make_queue(url)

    async def one(number: int) -> None:
        await app.send_message_json(channel="work", payload={"number": number}, headers={"topic": "noop"})

    async with app.servers.default.connection():
        yield Calls(one)


@asynccontextmanager
async def worker(url: str, add: Callable[[int], None], choice: str = "20 at a time, read 256") -> AsyncIterator[None]:
    from repid import Router

    await _make_queue(url)
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
