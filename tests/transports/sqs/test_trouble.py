"""Servers that stop, freeze and are cut off, queues that go away: each ends in an error that fits, or passes without a loss."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from functools import partial

import pytest
from brokers.sqs_server import SQSServer
from transports.flow import end, flow, hop, kill_and_start
from transports.proxy import Proxy
from transports.sqs.support import new_name, opened, settled_down, taken
from transports.words import receive, send_surely, sends

from oncue.core.errors import ConnectionLostError, QueueNotFoundError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))
pytestmark = pytest.mark.timeout(300)


def through(proxy: Proxy, more: str = "") -> str:
    return f"sqs://key:secret@eu-west-1?endpoint=http://127.0.0.1:{proxy.port}&size=262144&depth=approximate{more}"


async def test_ten_thousand_messages_of_a_hundred_publishers_outlive_restarts(mortal: SQSServer) -> None:
    url = f"{mortal.url}&timeout=8"
    troubles = {3_333: mortal.restart, 5_000: partial(kill_and_start, mortal)}
    async with (
        opened(url, within=240, lease=8.0) as (sender, queue),
        opened(url, queue, within=240, lease=8.0) as (transport, _),
        transport.subscribe(queue, prefetch=100) as subscription,
    ):
        seen = await flow(sender, subscription, 10_000, troubles, queue=queue, consumers=100, within=180)
    assert len(seen) == 10_000
    # What is seen twice was under way when the server went away: sent twice, or acknowledged without an answer.
    assert seen.total() - len(seen) <= 2 * (100 + 100 + 100) * len(troubles)


async def test_a_send_that_is_cut_off_is_reported_and_its_repetition_has_the_same_id(sqs_server: SQSServer) -> None:
    chance = random.Random(SEED)
    cut = 0
    async with Proxy(sqs_server.port) as proxy, opened(through(proxy, "&timeout=5")) as (transport, queue):
        said: set[str] = set()
        for number in range(20):
            proxy.requests, proxy.answers = (
                (chance.randrange(900), None) if number % 2 else (None, chance.randrange(400))
            )
            try:
                await transport.send(Send(queue, Message(b"x" * 200, str(number))))
                said.add(str(number))
            except ConnectionLostError:
                cut += 1
            proxy.requests = proxy.answers = None
        found = await taken(transport, queue)
        assert said <= set(found)
        assert max(Counter(found).values()) == 1, "what was cut off is not sent again by itself"
    assert cut > 10, "little was cut"


async def test_a_connection_that_is_dead_without_a_word_is_noticed(sqs_server: SQSServer) -> None:
    async with (
        Proxy(sqs_server.port) as proxy,
        opened(through(proxy, "&timeout=1")) as (transport, queue),
        opened(sqs_server.url, queue) as (observer, _),
        transport.subscribe(queue, prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0.3)
        proxy.mute = True
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match="no answer in time"):
            await transport.send(*sends(1, queue))
        assert time.monotonic() - began < 3
        await observer.send(*sends(1, queue, 7))
        await asyncio.sleep(0.3)
        proxy.mute = False
        assert (await waiting).message.id == "7"


async def test_leases_outlive_the_connection_that_they_came_by(sqs_server: SQSServer) -> None:
    async with Proxy(sqs_server.port) as proxy, opened(through(proxy)) as (transport, queue):
        await transport.send(*sends(3, queue))
        async with transport.subscribe(queue, prefetch=3) as subscription:
            leases = [await receive(subscription) for _ in range(3)]
            proxy.cut()
            await asyncio.sleep(0.05)
            await send_surely(transport, *sends(1, queue, 7))
            await leases[0].ack()
            await leases[1].extend(60)
            await leases[2].nack()
            again = {(await receive(subscription)).message.id for _ in range(2)}
            assert again == {leases[2].message.id, "7"}


async def test_cancelled_calls_and_cut_connections_together_lose_nothing(sqs_server: SQSServer) -> None:
    chance = random.Random(SEED)
    total = 60
    async with (
        Proxy(sqs_server.port) as proxy,
        opened(f"{sqs_server.url}&depth=approximate", lease=4.0) as (observer, queue),
        opened(f"{sqs_server.url}&depth=approximate", lease=4.0) as (_, after),
        opened(through(proxy, "&timeout=5"), queue, lease=4.0) as (transport, _),
    ):
        await observer.send(*sends(total, queue))

        async def cut() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0.3, 1.5))
                proxy.cut()

        async with transport.subscribe(queue, prefetch=20) as subscription:
            moves = (hop(subscription, after, lambda: chance.choice((None, None, 0.0, 0.01, 0.1))) for _ in range(10))
            tasks = [asyncio.create_task(cut()), *map(asyncio.create_task, moves)]
            await settled_down(observer, queue)
            await end(tasks)
        assert set(await taken(observer, after)) == {str(number) for number in range(total)}


async def test_a_server_that_says_nothing_is_given_up_and_found_again(mortal: SQSServer) -> None:
    async with (
        opened(f"{mortal.url}&timeout=2") as (transport, queue),
        transport.subscribe(queue, prefetch=1) as subscription,
    ):
        mortal.freeze()
        try:
            with pytest.raises(ConnectionLostError):
                await transport.send(*sends(1, queue))
            with pytest.raises(ConnectionLostError):
                async with asyncio.timeout(20):
                    await subscription.receive()
        finally:
            mortal.thaw()
        await send_surely(transport, Send(queue, Message(b"", "after")))
        assert (await receive(subscription)).message.id in {"0", "after"}


async def test_one_who_waits_is_told_that_the_queue_is_gone_though_the_server_never_answers(url: str) -> None:
    """ElasticMQ leaves whoever waits for messages of a queue that is deleted without an answer."""
    async with (
        opened(f"{url}&timeout=2") as (transport, queue),
        opened(url, queue) as (other, _),
        transport.subscribe(queue, prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.5)
        await other.delete(queue)
        with pytest.raises(QueueNotFoundError):
            async with asyncio.timeout(20):
                await waiting


async def test_a_queue_that_is_deleted_and_made_again_is_found(url: str) -> None:
    async with opened(f"{url}&timeout=5") as (transport, queue):
        await transport.send(*sends(1, queue))
        await transport.delete(queue)
        with pytest.raises(QueueNotFoundError):
            await transport.send(*sends(1, queue))
        await transport.declare(QueueSpec(name=queue, fifo=True))
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await (await receive(subscription)).ack()


async def test_opening_that_is_cancelled_waits_for_nobody(mortal: SQSServer) -> None:
    mortal.freeze()
    try:
        opening = asyncio.create_task(opened(mortal.url, new_name()).__aenter__())
        await asyncio.sleep(1.0)  # it has asked, or is about to
        opening.cancel()
        done, _ = await asyncio.wait([opening], timeout=3)
        assert done
        assert opening.cancelled()
    finally:
        mortal.thaw()
