"""Messages that come later: what has moved on leaves nothing behind."""

from __future__ import annotations

import asyncio

from transports.kafka.support import opened
from transports.words import receive

from oncue.core.message import Message, Send
from oncue.transports.kafka import KafkaTransport
from oncue.transports.kafka.delays import LEVELS, TOPIC


async def waiting(transport: KafkaTransport) -> int:
    """How many records the topic of delays has on the servers' disks."""
    cluster = transport.desk.cluster
    first, last = await asyncio.gather(
        cluster.ends(TOPIC, range(LEVELS), first=True), cluster.ends(TOPIC, range(LEVELS))
    )
    return sum(last.values()) - sum(first.values())


async def test_what_has_moved_on_is_deleted_and_cannot_come_again(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*(Send("work", Message(b"", str(number)), 0.5) for number in range(20)))
        assert await waiting(transport) >= 20
        async with transport.subscribe("work", prefetch=20) as subscription:
            for _ in range(20):
                await (await receive(subscription, within=20)).ack()
            async with asyncio.timeout(30):
                while await waiting(transport):
                    await asyncio.sleep(0.1)
