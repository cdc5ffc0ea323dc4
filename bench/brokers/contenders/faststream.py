"""FastStream with acknowledgement after success: a stream with a consumer group on Redis, a durable queue with persistent
messages on RabbitMQ, a work-queue stream with a durable pull consumer on NATS, whose acknowledgements nobody answers. No conversion of arguments, no log line for each message, uvloop, and as many handlers and messages at a
read as drain fastest here. A pipeline is its way for many on Redis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from bench.brokers.contenders import on_kafka
from bench.brokers.contest import Calls

NAME = "FastStream"
PACKAGES = {
    "redis": ("faststream", "redis", "uvloop"),
    "rabbitmq": ("faststream", "aio-pika", "uvloop"),
    "nats": ("faststream", "nats-py", "uvloop"),
    "kafka": ("faststream", "aiokafka", "uvloop"),
}
MODES = {
    "redis": {"concurrent": 1.0, "pipeline": 1.0},
    "rabbitmq": {"concurrent, unconfirmed": 1.0, "concurrent, confirmed": 1.0},
    "nats": {"concurrent, confirmed": 1.0},
    "kafka": {"concurrent, confirmed": 1.0, "publish_batch": 1.0},
}
SENDERS = 20
CHOICES = {
    "redis": ("1 handler, read 100", "1 handler, read 1000", "4 handlers, read 1000", "16 handlers, read 100"),
    "rabbitmq": ("16 handlers", "64 handlers", "256 handlers", "1000 handlers"),
    "nats": ("1 handler, read 100", "1 handler, read 500", "16 handlers, read 100", "64 handlers, read 500"),
    "kafka": ("1 handler", "4 handlers"),
}
QUEUE, GROUP = "work", "workers"


def sender(url: str, mode: str) -> Any:
    if url.startswith("nats"):
        return _nats_sender(url)
    if url.startswith("kafka"):
        return on_kafka.faststream_sender(url)
    return (
        _redis_sender(url) if url.startswith("redis") else _rabbitmq_sender(url, confirmed=mode.endswith(" confirmed"))
    )


def worker(url: str, add: Callable[[int], None], choice: str = "") -> Any:
    if url.startswith("nats"):
        return _nats_worker(url, add, choice)
    if url.startswith("kafka"):
        return on_kafka.faststream_worker(url, add, choice)
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


async def _make_stream(js: Any) -> None:
    from nats.js.api import RetentionPolicy, StreamConfig

    await js.add_stream(StreamConfig(name=QUEUE, subjects=[QUEUE], retention=RetentionPolicy.WORK_QUEUE))


@asynccontextmanager
async def _nats_sender(url: str) -> AsyncIterator[Calls]:
    from faststream.nats import NatsBroker

    broker = NatsBroker(url, logger=None, apply_types=False)
    client = await broker.connect()
    await _make_stream(client.jetstream())

    async def one(number: int) -> None:
        await broker.publish(number, QUEUE, stream=QUEUE, timeout=10)

    yield Calls(one)
    await broker.stop()


@asynccontextmanager
async def _nats_worker(url: str, add: Callable[[int], None], choice: str) -> AsyncIterator[None]:
    from faststream import AckPolicy
    from faststream.nats import JStream, NatsBroker, PullSub

    handlers, _, read = choice.replace("handlers", "handler").partition(" handler, read ")
    broker = NatsBroker(url, logger=None, apply_types=False)
    several = {"max_workers": int(handlers)} if handlers != "1" else {}

    @broker.subscriber(
        QUEUE,
        stream=JStream(QUEUE, declare=False),
        durable=GROUP,
        pull_sub=PullSub(batch_size=int(read), timeout=1.0),
        ack_policy=AckPolicy.NACK_ON_ERROR,
        **several,
    )
    async def noop(number: int) -> None:
        add(number)

    client = await broker.connect()
    await _make_stream(client.jetstream())
    await broker.start()
    yield
    await broker.stop()
