"""What contenders do on Kafka: topics of four partitions, sends that are written before they return, commits after success.

The bare client reads in batches, and commits after each what it has worked off, as text beside the offset would not be needed for.
FastStream commits after each message. Taskiq has no part: its broker for Kafka commits by the clock, whatever was worked off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from bench.brokers.contest import Calls

TOPIC, GROUP, PARTITIONS = "work", "workers", 4


def _server(url: str) -> str:
    return url.partition("://")[2].partition("?")[0]


async def make_topic(url: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.errors import TopicAlreadyExistsError

    admin = AIOKafkaAdminClient(bootstrap_servers=_server(url))
    await admin.start()
    with suppress(TopicAlreadyExistsError):
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    await admin.close()


@asynccontextmanager
async def bare_sender(url: str) -> AsyncIterator[Calls]:
    from aiokafka import AIOKafkaProducer

    await make_topic(url)
    producer = AIOKafkaProducer(bootstrap_servers=_server(url), enable_idempotence=True, acks="all")
    await producer.start()

    async def one(number: int) -> None:
        await producer.send_and_wait(TOPIC, b"%d" % number, partition=number % PARTITIONS)

    async def many(numbers: Sequence[int]) -> None:
        stored = [await producer.send(TOPIC, b"%d" % number, partition=number % PARTITIONS) for number in numbers]
        await asyncio.gather(*stored)

    yield Calls(one, many)
    await producer.stop()


@asynccontextmanager
async def bare_worker(url: str, add: Callable[[int], None], batch: int) -> AsyncIterator[None]:
    from aiokafka import AIOKafkaConsumer

    await make_topic(url)
    consumer = AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=_server(url),
        group_id=GROUP,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()

    async def work() -> None:
        while True:
            found = await consumer.getmany(timeout_ms=1000, max_records=batch)
            for records in found.values():
                for record in records:
                    add(int(record.value))
            if found:
                await consumer.commit({place: records[-1].offset + 1 for place, records in found.items()})

    working = asyncio.create_task(work())
    yield
    working.cancel()
    await asyncio.wait([working])
    await consumer.stop()


def _faststream(url: str) -> Any:
    from faststream.kafka import KafkaBroker

    return KafkaBroker(
        _server(url), logger=None, apply_types=False, enable_idempotence=True, acks="all", max_batch_size=2**20
    )


@asynccontextmanager
async def faststream_sender(url: str) -> AsyncIterator[Calls]:
    await make_topic(url)
    broker = _faststream(url)
    await broker.start()

    async def one(number: int) -> None:
        await broker.publish(number, TOPIC, partition=number % PARTITIONS)

    async def many(numbers: Sequence[int]) -> None:
        await broker.publish_batch(*numbers, topic=TOPIC)

    yield Calls(one, many)
    await broker.stop()


@asynccontextmanager
async def faststream_worker(url: str, add: Callable[[int], None], choice: str) -> AsyncIterator[None]:
    from faststream import AckPolicy

    await make_topic(url)
    broker = _faststream(url)
    workers = int(choice.partition(" ")[0])

    @broker.subscriber(
        TOPIC,
        group_id=GROUP,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        **({"max_workers": workers} if workers > 1 else {}),
    )
    async def noop(number: int) -> None:
        add(number)

    await broker.start()
    yield
    await broker.stop()
