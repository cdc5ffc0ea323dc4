"""The broker's own client and nothing around it: the calls that a careful consumer makes, in batches.

On Redis, a stream with a consumer group, whose entries are acknowledged and deleted. On RabbitMQ, a durable queue, persistent
messages that are confirmed, and acknowledgements of all that came until then. On SQS, batches of ten, four requests at a time.
On NATS, a work-queue stream, publishes that are answered, a durable pull consumer, and acknowledgements that are answered too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from bench.brokers.contenders import on_kafka, on_pubsub
from bench.brokers.contest import BATCH, Calls

NAME = "bare client"
PACKAGES = {
    "redis": ("redis", "hiredis", "uvloop"),
    "rabbitmq": ("aiormq", "uvloop"),
    "sqs": ("aiobotocore",),
    "nats": ("nats-py", "uvloop"),
    "kafka": ("aiokafka", "uvloop"),
    "pubsub": ("google-cloud-pubsub", "uvloop"),
}
MODES = {
    "redis": {"pipeline": 1.0},
    "rabbitmq": {"gathered, confirmed": 1.0},
    "sqs": {"batches of ten": 0.3},
    "nats": {"gathered, confirmed": 1.0},
    "kafka": {"gathered, confirmed": 1.0},
    "pubsub": {"batches of 1000": 1.0},
}
CHOICES = {
    "redis": ("256", "1000"),
    "rabbitmq": ("256", "1000"),
    "sqs": ("4", "8"),
    "nats": ("100", "500"),
    "kafka": ("500", "2000"),
    "pubsub": ("2 pulls", "4 pulls"),
}
QUEUE, GROUP = "work", "workers"


def sender(url: str, _mode: str) -> Any:
    if url.startswith("sqs"):
        return _sqs_sender(url)
    if url.startswith("nats"):
        return _nats_sender(url)
    if url.startswith("kafka"):
        return on_kafka.bare_sender(url)
    if url.startswith("pubsub"):
        return on_pubsub.bare_sender(url)
    return _redis_sender(url) if url.startswith("redis") else _rabbitmq_sender(url)


def worker(url: str, add: Callable[[int], None], batch: str = "1000") -> Any:
    if url.startswith("sqs"):
        return _sqs_worker(url, add, min(int(batch), 8))
    if url.startswith("nats"):
        return _nats_worker(url, add, int(batch))
    if url.startswith("kafka"):
        return on_kafka.bare_worker(url, add, int(batch))
    if url.startswith("pubsub"):
        return on_pubsub.bare_worker(url, add, 2 if batch == "1000" else int(batch.partition(" ")[0]))
    return (_redis_worker if url.startswith("redis") else _rabbitmq_worker)(url, add, int(batch))


@asynccontextmanager
async def _redis_sender(url: str) -> AsyncIterator[Calls]:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.xgroup_create(QUEUE, GROUP, "0", mkstream=True)

    async def one(number: int) -> None:
        await client.xadd(QUEUE, {"number": number})

    async def many(numbers: Sequence[int]) -> None:
        pipe = client.pipeline(transaction=False)
        for number in numbers:
            pipe.xadd(QUEUE, {"number": number})
        await pipe.execute()

    yield Calls(one, many)
    await client.aclose()


@asynccontextmanager
async def _redis_worker(url: str, add: Callable[[int], None], batch: int) -> AsyncIterator[None]:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    with suppress(redis.ResponseError):
        await client.xgroup_create(QUEUE, GROUP, "0", mkstream=True)

    async def work() -> None:
        while True:
            for _, entries in await client.xreadgroup(GROUP, "one", {QUEUE: ">"}, count=batch, block=1000) or ():
                for _, fields in entries:
                    add(int(fields[b"number"]))
                ids = [id for id, _ in entries]
                await client.pipeline(transaction=True).xack(QUEUE, GROUP, *ids).xdel(QUEUE, *ids).execute()

    working = asyncio.create_task(work())
    yield
    working.cancel()
    await asyncio.wait([working])
    await client.aclose()


@asynccontextmanager
async def _rabbitmq_sender(url: str) -> AsyncIterator[Calls]:
    import aiormq

    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.queue_declare(QUEUE, durable=True)
    persistent = aiormq.spec.Basic.Properties(delivery_mode=2)

    async def one(number: int) -> None:
        await channel.basic_publish(b"%d" % number, routing_key=QUEUE, properties=persistent, mandatory=True)

    async def many(numbers: Sequence[int]) -> None:
        await asyncio.gather(*map(one, numbers))

    yield Calls(one, many)
    await connection.close()


@asynccontextmanager
async def _rabbitmq_worker(url: str, add: Callable[[int], None], batch: int) -> AsyncIterator[None]:
    import aiormq

    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.queue_declare(QUEUE, durable=True)
    await channel.basic_qos(prefetch_count=2 * batch)
    last = settled = 0

    async def come(message: Any) -> None:
        nonlocal last
        add(int(message.body))
        last = message.delivery_tag
        if not last % batch:
            await settle()

    async def settle() -> None:
        nonlocal settled
        if settled < last:
            settled = last
            await channel.basic_ack(last, multiple=True, wait=False)

    async def settle_rest() -> None:
        while True:
            await asyncio.sleep(0.02)
            await settle()

    settling = asyncio.create_task(settle_rest())
    await channel.basic_consume(QUEUE, come)
    yield
    settling.cancel()
    await settle()
    await connection.close()


def endpoint_of(url: str) -> str:
    return url.partition("endpoint=")[2].partition("&")[0]


@asynccontextmanager
async def sqs_queue(url: str) -> AsyncIterator[tuple[Any, str]]:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    client = AioSession().create_client(
        "sqs",
        region_name="eu-west-1",
        endpoint_url=endpoint_of(url),
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=AioConfig(parameter_validation=False),
    )
    async with client as sqs:
        try:
            queue = (await sqs.create_queue(QueueName=QUEUE))["QueueUrl"]
        except sqs.exceptions.QueueNameExists:
            queue = (await sqs.get_queue_url(QueueName=QUEUE))["QueueUrl"]
        yield sqs, queue


@asynccontextmanager
async def _sqs_sender(url: str) -> AsyncIterator[Calls]:
    async with sqs_queue(url) as (sqs, queue):

        async def one(number: int) -> None:
            await sqs.send_message(QueueUrl=queue, MessageBody=str(number))

        async def ten(numbers: Sequence[int]) -> None:
            entries = [{"Id": str(place), "MessageBody": str(number)} for place, number in enumerate(numbers)]
            answer = await sqs.send_message_batch(QueueUrl=queue, Entries=entries)
            assert not answer.get("Failed")

        async def many(numbers: Sequence[int]) -> None:
            tens = [numbers[start : start + 10] for start in range(0, len(numbers), 10)]
            for start in range(0, len(tens), 4):
                await asyncio.gather(*map(ten, tens[start : start + 4]))

        yield Calls(one, many)


@asynccontextmanager
async def _sqs_worker(url: str, add: Callable[[int], None], at_once: int) -> AsyncIterator[None]:
    async with sqs_queue(url) as (sqs, queue):

        async def work() -> None:
            while True:
                answer = await sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1)
                messages = answer.get("Messages") or ()
                for message in messages:
                    add(int(message["Body"]))
                if messages:
                    entries = [
                        {"Id": str(place), "ReceiptHandle": message["ReceiptHandle"]}
                        for place, message in enumerate(messages)
                    ]
                    await sqs.delete_message_batch(QueueUrl=queue, Entries=entries)

        working = [asyncio.create_task(work()) for _ in range(at_once)]
        yield
        for task in working:
            task.cancel()
        await asyncio.wait(working)


@asynccontextmanager
async def _nats(url: str) -> AsyncIterator[Any]:
    import nats
    from nats.js.api import RetentionPolicy, StreamConfig

    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=BATCH)
    await js.add_stream(StreamConfig(name=QUEUE, subjects=[QUEUE], retention=RetentionPolicy.WORK_QUEUE))
    yield js
    await client.close()


@asynccontextmanager
async def _nats_sender(url: str) -> AsyncIterator[Calls]:
    async with _nats(url) as js:

        async def one(number: int) -> None:
            await js.publish(QUEUE, b"%d" % number, headers={"Nats-Msg-Id": str(number)})

        async def many(numbers: Sequence[int]) -> None:
            answers = [
                await js.publish_async(QUEUE, b"%d" % number, headers={"Nats-Msg-Id": str(number)})
                for number in numbers
            ]
            await asyncio.gather(*answers)

        yield Calls(one, many)


@asynccontextmanager
async def _nats_worker(url: str, add: Callable[[int], None], batch: int) -> AsyncIterator[None]:
    from nats.errors import TimeoutError as NothingError

    async with _nats(url) as js:
        consumer = await js.pull_subscribe(QUEUE, durable=GROUP, stream=QUEUE)

        async def work() -> None:
            while True:
                with suppress(NothingError):
                    messages = await consumer.fetch(batch, timeout=1)
                    for message in messages:
                        add(int(message.data))
                    await asyncio.gather(*(message.ack_sync(timeout=10) for message in messages))

        working = asyncio.create_task(work())
        yield
        working.cancel()
        await asyncio.wait([working])
