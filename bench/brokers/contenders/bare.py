"""The broker's own client and nothing around it: the calls that a careful consumer makes, in batches.

On Redis, a stream with a consumer group, whose entries are acknowledged and deleted. On RabbitMQ, a durable queue, persistent
messages that are confirmed, and acknowledgements of all that came until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from bench.brokers.contest import Calls

NAME = "bare client"
PACKAGES = {"redis": ("redis", "hiredis", "uvloop"), "rabbitmq": ("aiormq", "uvloop")}
MODES = {
    "redis": {"pipeline": 1.0},
    "rabbitmq": {"gathered, confirmed": 1.0},
}
CHOICES = {"redis": ("256", "1000"), "rabbitmq": ("256", "1000")}
QUEUE, GROUP = "work", "workers"


def sender(url: str, _mode: str) -> Any:
    return _redis_sender(url) if url.startswith("redis") else _rabbitmq_sender(url)


def worker(url: str, add: Callable[[int], None], batch: str = "1000") -> Any:
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
