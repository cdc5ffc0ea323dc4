"""Looking at queues from outside their groups."""

from __future__ import annotations

from transports.kafka.support import opened
from transports.words import sends


async def test_a_look_into_an_empty_queue_ends_at_once_each_time(url: str) -> None:
    async with opened(url) as transport:
        for _ in range(20):  # a consumer that is stopped as soon as it is started
            assert await transport.peek("work", limit=1) == []


async def test_a_look_shows_the_oldest_of_all_partitions_and_takes_nothing(url: str) -> None:
    async with opened(url) as transport:
        for first in range(0, 40, 10):
            await transport.send(*sends(10, first=first))
        for _ in range(2):
            assert [message.id for message in await transport.peek("work", limit=25)] == [str(n) for n in range(25)]
        depth = await transport.depth("work")
        assert (depth.ready, depth.leased) == (40, 0)
