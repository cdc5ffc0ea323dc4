"""FastStream with acknowledgement after success: a stream with a consumer group on Redis, a durable queue with persistent
messages on RabbitMQ. No conversion of arguments, no log line for each message, uvloop, and as many handlers and messages at a
read as drain fastest here. A pipeline is its way for many on Redis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from bench.brokers.contest import Calls

NAME = "FastStream"
PACKAGES = {"redis": ("faststream", "redis", "uvloop"), "rabbitmq": ("faststream", "aio-pika", "uvloop")}
MODES = {
    "redis": {"concurrent": 1.0, "pipeline": 1.0},
    "rabbitmq": {"concurrent, unconfirmed": 1.0, "concurrent, confirmed": 1.0},
}
SENDERS = 20
CHOICES = {
    "redis": ("1 handler, read 100", "1 handler, read 1000", "4 handlers, read 1000", "16 handlers, read 100"),
    "rabbitmq": ("16 handlers", "64 handlers", "256 handlers", "1000 handlers"),
}
QUEUE, GROUP = "work", "workers"


def sender(url: str, mode: str) -> Any:
    return (
        _redis_sender(url) if url.startswith("redis") else _rabbitmq_sender(url, confirmed=mode.endswith(" confirmed"))
    )


def worker(url: str, add: Callable[[int], None], choice: str = "") -> Any:
    return (_redis_worker if url.startswith("redis") else _rabbitmq_worker)(url, add, choice)


@asynccontextmanager
async def _redis_sender(url: str) -> AsyncIterator[Calls]:
    from faststream.redis import RedisBroker

    broker = RedisBroker(url, logger=None, apply_types=False)
    client = await broker.connect()
    await _make_group(client)

    async def one(number: int) -> None:
        await broker.publish(number, stream=QUEUE)

    async def many(numbers: Sequence[int]) -> None:
        async with client.pipeline(transaction=False) as pipe:
            for number in numbers:
                await broker.publish(number, stream=QUEUE, pipeline=pipe)
            await pipe.execute()

    yield Calls(one, many)
    await broker.stop()


async def _make_group(client: Any) -> None:
    """Where there is no group yet, a subscriber makes one that begins after what was sent until then."""
    from redis import ResponseError

    with suppress(ResponseError):
        await client.xgroup_create(QUEUE, GROUP, "0", mkstream=True)


@asynccontextmanager
async def _redis_worker(url: str, add: Callable[[int], None], choice: str) -> AsyncIterator[None]:
    from faststream import AckPolicy
    from faststream.redis import RedisBroker, StreamSub

    handlers, _, read = choice.replace("handlers", "handler").partition(" handler, read ")
    broker = RedisBroker(url, logger=None, apply_types=False)
    stream = StreamSub(QUEUE, group=GROUP, consumer="one", max_records=int(read), polling_interval=1000)

    @broker.subscriber(stream=stream, ack_policy=AckPolicy.NACK_ON_ERROR, max_workers=int(handlers))
    async def noop(number: int) -> None:
        add(number)

    await _make_group(await broker.connect())
    await broker.start()
    yield
    await broker.stop()


@asynccontextmanager
async def _rabbitmq_sender(url: str, *, confirmed: bool) -> AsyncIterator[Calls]:
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    broker = RabbitBroker(url, logger=None, apply_types=False, default_channel=Channel(publisher_confirms=confirmed))
    await broker.connect()
    queue = RabbitQueue(QUEUE, durable=True)
    await broker.declare_queue(queue)

    async def one(number: int) -> None:
        await broker.publish(number, queue=QUEUE, persist=True, mandatory=confirmed)

    yield Calls(one)
    await broker.stop()


@asynccontextmanager
async def _rabbitmq_worker(url: str, add: Callable[[int], None], choice: str) -> AsyncIterator[None]:
    from faststream import AckPolicy
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    ahead = Channel(prefetch_count=int(choice.partition(" ")[0]))
    broker = RabbitBroker(url, logger=None, apply_types=False, default_channel=ahead)

    @broker.subscriber(RabbitQueue(QUEUE, durable=True), ack_policy=AckPolicy.NACK_ON_ERROR)
    async def noop(number: int) -> None:
        add(number)

    await broker.start()
    yield
    await broker.stop()
