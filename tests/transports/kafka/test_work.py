"""What working costs: requests, connections, and the end of what many ask for at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from brokers.kafka_server import KafkaServer
from transports.kafka.support import opened
from transports.words import receive, sends

from oncue.core.message import Message, Send


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many requests of each kind the client has sent."""
    counted: Counter[str] = Counter()
    send = AIOKafkaClient.send

    async def count(self: AIOKafkaClient, node: Any, request: Any, **options: Any) -> Any:
        counted[type(request).__name__] += 1
        return await send(self, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", count)
    return counted


async def test_a_consumer_that_waits_asks_about_once_a_second(server: KafkaServer, requests: Counter[str]) -> None:
    async with opened(server.url) as transport, transport.subscribe("work", prefetch=4) as subscription:
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(1.0)
        requests.clear()
        await asyncio.sleep(8.0)
        waiting.cancel()
        assert requests.total() <= 12, dict(requests)


async def test_many_messages_are_few_requests(url: str, requests: Counter[str]) -> None:
    total = 2000
    async with opened(url) as transport:
        await transport.send(*sends(1, first=total))
        requests.clear()
        for first in range(0, total, 500):
            await transport.send(*sends(500, first=first))
        assert requests["ProduceRequest"] <= 8
        async with transport.subscribe("work", prefetch=500) as subscription:
            requests.clear()
            done = 0
            while done <= total:
                leases = [await receive(subscription) for _ in range(min(500, total + 1 - done))]
                await asyncio.gather(*(lease.ack() for lease in leases))
                done += len(leases)
            assert requests["OffsetCommitRequest"] <= 40, dict(requests)


async def test_many_who_send_to_a_queue_for_the_first_time_ask_for_it_once(url: str, requests: Counter[str]) -> None:
    async with opened(url), opened(url, "other") as transport:
        requests.clear()
        await asyncio.gather(*(transport.send(Send("work", Message(b"", str(number)))) for number in range(300)))
        assert requests["MetadataRequest"] + requests["OffsetRequest"] <= 12, dict(requests)
        assert (await transport.depth("work")).ready == 300
