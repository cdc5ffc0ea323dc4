"""Consumers that come and go under load: nothing is lost, and nothing comes twice to those who say goodbye."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter

from transports.kafka.support import opened, settled_down
from transports.words import receive, sends

from oncue.core.errors import LeaseLostError
from oncue.core.message import Message, Send
from oncue.transports.kafka import open_kafka
from oncue.transports.kafka.subscription import KafkaSubscription


async def test_a_storm_of_comings_and_goings_loses_nothing_and_repeats_nothing(url: str) -> None:
    chance = random.Random(7)
    total = 3000
    done: Counter[str] = Counter()

    async def work(lifetime: float) -> None:
        transport = await open_kafka(url)
        try:
            async with asyncio.timeout(lifetime), transport.subscribe("work", prefetch=20) as subscription:
                while True:
                    lease = await subscription.receive()
                    await asyncio.sleep(0.002)
                    done[lease.message.id] += 1
                    await lease.ack()  # which takes effect also when it is cancelled
        except TimeoutError:
            return
        finally:
            await transport.close()

    async with opened(url) as transport:
        await transport.send(*sends(total))
        while len(done) < total:
            await asyncio.gather(*(work(chance.uniform(0.5, 2.0)) for _ in range(3)))
        await settled_down(transport, "work")
    assert set(done) == {str(number) for number in range(total)}
    assert max(done.values()) == 1


async def test_work_in_hand_stays_with_its_owner_when_another_consumer_comes(url: str) -> None:
    async with opened(url) as transport, opened(url, "other") as second:
        await transport.send(*sends(40))
        async with (
            transport.subscribe("work", prefetch=1) as subscription,
            second.subscribe("work", prefetch=50) as another,
        ):
            held = await receive(subscription)
            theirs = [await receive(another) for _ in range(20)]  # all of the two partitions that it is given
            assert held.message.id not in {lease.message.id for lease in theirs}
            assert {lease.attempt for lease in theirs} == {1}
            await held.ack()
            for lease in theirs:
                await lease.ack()


async def test_who_works_at_all_partitions_gives_some_away_when_that_work_is_done(url: str) -> None:
    async with opened(url) as transport, opened(url, "other") as second:
        await transport.send(*sends(40))
        async with (
            transport.subscribe("work", prefetch=40) as subscription,
            second.subscribe("work", prefetch=1) as another,
        ):
            held = [await receive(subscription) for _ in range(40)]
            coming = asyncio.ensure_future(receive(another))
            await transport.send(*sends(40, first=40))
            for lease in held:  # and no more of the two partitions that are to be given away
                await asyncio.sleep(0.02)
                await lease.ack()
            first = await coming
            assert (int(first.message.id) >= 40, first.attempt) == (True, 1)
            await first.ack()


async def test_who_waits_receives_at_once_from_partitions_that_come_to_it_meanwhile(url: str) -> None:
    async def has_partitions(subscription: KafkaSubscription, count: int) -> list[int]:
        while subscription.member is None or len(subscription.member.ledgers) != count:
            await asyncio.sleep(0.02)
        return list(subscription.member.ledgers)

    async with opened(url) as transport, transport.subscribe("work", prefetch=5) as subscription:
        second = await open_kafka(url)
        try:
            async with second.subscribe("work", prefetch=5) as another:
                idle = asyncio.ensure_future(another.receive())
                await has_partitions(another, 4)
                coming = asyncio.ensure_future(subscription.receive())
                theirs = await has_partitions(another, 2)
                await has_partitions(subscription, 2)
                await asyncio.sleep(1.0)  # until it waits for messages of these two
                idle.cancel()
        finally:
            await second.close()
        await has_partitions(subscription, 4)
        key = next(key for key in map(str, range(100)) if zlib.crc32(key.encode()) % 4 in theirs)
        await transport.send(Send("work", Message(b"", "a", key=key)))
        async with asyncio.timeout(10):
            lease = await coming
        assert lease.message.id == "a"
        await lease.ack()


async def test_depth_counts_new_arrivals_behind_old_work_in_hand(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            old = await receive(subscription)
            await transport.send(*sends(5, first=1))
            async with transport.subscribe("work", prefetch=5) as busy:
                for _ in range(5):
                    await (await receive(busy)).ack()
            await transport.send(*sends(4, first=6))
            depth = await transport.depth("work")
            assert (depth.ready, depth.leased) == (4, 1)
            await old.ack()
        depth = await transport.depth("work")
        assert (depth.ready, depth.leased) == (4, 0)


async def test_a_lease_that_was_lost_settles_nothing(url: str) -> None:
    async with opened(url, lease=1.0) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lost = await receive(subscription)
            again = await receive(subscription)
            assert again.attempt == 2
            for settle in (lost.ack, lost.nack, lost.release):
                try:
                    await settle()
                except LeaseLostError:
                    continue
                raise AssertionError("it was taken")
            await again.ack()
