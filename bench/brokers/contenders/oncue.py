"""OnCue through its public library as it comes: acknowledged after success, attempts counted, leases kept alive, the messages of
a worker that died handed out again. On RabbitMQ it makes quorum queues, and every send is confirmed, and refused where there is no
queue. On NATS it waits for the server's answer to each send and each acknowledgement.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bench.brokers.contest import Calls
from oncue import App

NAME = "OnCue"
PACKAGES = {
    "redis": ("oncue", "uvloop"),
    "rabbitmq": ("oncue", "uvloop"),
    "sqs": ("oncue", "aiobotocore"),
    "nats": ("oncue", "uvloop"),
    "kafka": ("oncue", "aiokafka", "uvloop"),
    "pubsub": ("oncue", "google-cloud-pubsub", "uvloop"),
}
MODES = {broker: {"concurrent": 1.0, "send_many": 1.0, "one by one": 0.1} for broker in PACKAGES}
CONCURRENCY = 256


def _app(url: str, add: Callable[[int], None]) -> App:
    app = App(url)

    @app.actor(concurrency=CONCURRENCY)
    async def noop(number: int) -> None:
        add(number)

    return app


@asynccontextmanager
async def sender(url: str, _mode: str) -> AsyncIterator[Calls]:
    app = _app(url, lambda _: None)
    noop = app.actors["noop"]
    async with app:
        yield Calls(noop.send, noop.send_many)


@asynccontextmanager
async def worker(url: str, add: Callable[[int], None]) -> AsyncIterator[None]:
    async with _app(url, add).working():
        yield
