"""Topics that other tools delete and make anew while they are in use."""

from __future__ import annotations

import asyncio

import pytest
from transports.kafka.support import opened
from transports.words import receive, sends

from oncue.core.errors import QueueNotFoundError
from oncue.transports.base import Depth, QueueSpec
from oncue.transports.kafka import KafkaTransport


async def delete_topic(transport: KafkaTransport, topic: str) -> None:
    """As a tool does that knows nothing of queues."""
    await transport.desk.cluster._admin.delete_topics([topic])
    while await transport.desk.cluster.topics(topic):
        await asyncio.sleep(0.05)


async def test_a_topic_that_is_gone_is_not_made_anew_by_those_who_use_it(url: str) -> None:
    async with opened(f"{url}&timeout=3") as transport, transport.subscribe("work", prefetch=5) as subscription:
        await transport.send(*sends(1))
        await (await receive(subscription)).ack()
        await delete_topic(transport, "work")
        for _ in range(2):
            with pytest.raises(QueueNotFoundError):
                await transport.send(*sends(1))
        with pytest.raises(QueueNotFoundError):
            await transport.depth("work")
        assert not await transport.desk.cluster.topics("work")
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.2)
        await transport.declare(QueueSpec(name="work"))
        with pytest.raises(QueueNotFoundError):
            await waiting
        await transport.send(*sends(1))
        await (await receive(subscription)).ack()


async def test_a_topic_that_was_made_anew_with_fewer_partitions_is_used_as_it_is(url: str) -> None:
    async with opened(f"{url}&timeout=3") as transport:
        await transport.send(*sends(8))
        await delete_topic(transport, "work")
        await transport.desk.cluster.create("work", 1)
        while not await transport.desk.cluster.topics("work"):
            await asyncio.sleep(0.05)
        assert await transport.depth("work") == Depth(0, 0, None)
        await transport.send(*sends(8))
        assert await transport.depth("work") == Depth(8, 0, None)
