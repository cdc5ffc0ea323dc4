"""Taskiq with its brokers that acknowledge, after success: `RedisStreamBroker`, `AioPikaBroker` on a durable queue that is not
replicated, and `PullBasedJetStreamBroker`, whose acknowledgements nobody answers. uvloop as in its own command, no results, arguments not parsed again, and as many tasks at a time and messages
at a read as drain fastest here. It has no call for many; on RabbitMQ its sends are always confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bench.brokers.contest import Calls

NAME = "Taskiq"
PACKAGES = {
    "redis": ("taskiq", "taskiq-redis", "redis", "uvloop"),
    "rabbitmq": ("taskiq", "taskiq-aio-pika", "aio-pika", "uvloop"),
    "nats": ("taskiq", "taskiq-nats", "nats-py", "uvloop"),
}
MODES = {
    "redis": {"concurrent": 1.0},
    "rabbitmq": {"concurrent, confirmed": 1.0},
    "nats": {"concurrent, confirmed": 1.0},
}
SENDERS = 50
CHOICES = {
    "redis": ("5 at a time, read 100", "20 at a time, read 100", "20 at a time, read 1000", "50 at a time, read 1000"),
    "rabbitmq": (
        "5 at a time, read 100",
        "20 at a time, read 100",
        "100 at a time, read 200",
        "100 at a time, read 1000",
    ),
    "nats": ("5 at a time, read 100", "20 at a time, read 100", "100 at a time, read 500"),
}
CONNECTIONS = 50


def _broker(url: str, add: Callable[[int], None] | None = None, *, read: int = 100) -> Any:
    if url.startswith("redis"):
        from taskiq_redis import RedisStreamBroker

        broker: Any = RedisStreamBroker(
            url, consumer_id="0", xread_count=read, max_connection_pool_size=CONNECTIONS, unacknowledged_lock_timeout=60
        )
    elif url.startswith("nats"):
        from nats.js.api import RetentionPolicy, StreamConfig
        from taskiq_nats import PullBasedJetStreamBroker

        stream = StreamConfig(retention=RetentionPolicy.WORK_QUEUE)
        broker = PullBasedJetStreamBroker(url, stream_config=stream, pull_consume_batch=read, pull_consume_timeout=1.0)
    else:
        from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

        broker = AioPikaBroker(
            url,
            qos=read,
            task_queues=[Queue(type=QueueType.CLASSIC)],
            dead_letter_queue=Queue(name="taskiq.dead_letter", type=QueueType.CLASSIC),
        )

    @broker.task(task_name="noop")
    async def noop(number: int) -> None:
        if add is not None:
            add(number)

    return broker


@asynccontextmanager
async def sender(url: str, _mode: str) -> AsyncIterator[Calls]:
    broker = _broker(url)
    await broker.startup()
    noop = broker.find_task("noop")
    yield Calls(noop.kiq)
    await broker.shutdown()


@asynccontextmanager
async def worker(url: str, add: Callable[[int], None], choice: str = "20 at a time, read 100") -> AsyncIterator[None]:
    from taskiq.acks import AcknowledgeType
    from taskiq.api import run_receiver_task

    at_once, _, read = choice.partition(" at a time, read ")
    broker = _broker(url, add, read=int(read))
    broker.is_worker_process = True
    await broker.startup()
    running = asyncio.create_task(
        run_receiver_task(
            broker,
            max_async_tasks=int(at_once),
            max_prefetch=int(read),
            validate_params=False,
            ack_time=AcknowledgeType.WHEN_EXECUTED,
        )
    )
    yield
    running.cancel()
    await asyncio.wait([running])
    await broker.shutdown()
