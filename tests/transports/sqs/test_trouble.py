"""Servers that stop, freeze and are cut off, and processes that are killed and frozen: nothing is lost, and late ones are refused."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from uuid import uuid4

import pytest
from brokers.sqs_server import SQSServer
from transports import processes
from transports.redis.support import Proxy
from transports.sqlite.support import Program
from transports.words import receive, send_surely, sends

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec, Transport
from oncue.transports.sqs import open_sqs
from oncue.transports.sqs.clock import Clock

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))


@pytest.fixture
def alone(sqs_server: SQSServer) -> str:
    """The server, whose queues `work`, `next` and `copies` nobody else uses at the moment."""
    return f"{sqs_server.url}&depth=approximate&timeout=8"


async def fresh(url: str, *queues: str, lease: float = 2.0) -> Transport:
    transport = await open_sqs(url)
    for queue in queues:
        await transport.delete(queue)
        await transport.declare(QueueSpec(name=queue, lease=lease))
    return transport


async def taken(transport: Transport, queue: str, quiet: float = 1.5) -> list[str]:
    """The ids of all messages that are ready, which are gone then."""
    ids: list[str] = []
    async with transport.subscribe(queue, prefetch=100) as subscription:
        while True:
            try:
                async with asyncio.timeout(quiet):
                    lease = await subscription.receive()
            except TimeoutError:
                depth = await transport.depth(queue)
                if not depth.ready and not depth.leased:
                    return ids
                continue
            with suppress(LeaseLostError):
                await lease.ack()
                ids.append(lease.message.id)


@pytest.mark.xdist_group("sqs-alone")
async def test_every_send_that_was_confirmed_is_there_after_the_sender_was_killed(alone: str) -> None:
    transport = await fresh(alone, "work")
    chance = random.Random(SEED)
    confirmed: list[str] = []
    for number in range(3):
        with Program(processes.sender, alone, number * 1_000_000) as program:
            await program.say()
            await asyncio.sleep(chance.uniform(0.1, 0.3))
            program.kill()
            confirmed += [str(word) for word in program.rest() if isinstance(word, int)]
    stored = Counter(await taken(transport, "work"))
    await transport.close()
    assert confirmed
    assert not set(confirmed) - set(stored), f"lost with seed {SEED}"


@pytest.mark.xdist_group("sqs-alone")
async def test_workers_killed_at_random_moments_lose_nothing(alone: str) -> None:
    transport = await fresh(alone, "work", "next", "copies")
    chance = random.Random(SEED)
    total = 300
    await transport.send(*sends(total))
    for _ in range(3):
        with Program(processes.hopper, alone) as program:
            await program.say()
            await asyncio.sleep(chance.uniform(0.05, 0.3))
    with Program(processes.hopper, alone):
        async with asyncio.timeout(45):
            while (depth := await transport.depth("work")).ready or depth.leased:
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.3)
    moved = Counter(await taken(transport, "next"))
    await transport.close()
    assert set(moved) == {str(number) for number in range(total)}, f"lost with seed {SEED}"


@pytest.mark.xdist_group("sqs-alone")
async def test_a_worker_that_was_frozen_cannot_undo_what_the_next_one_does(alone: str) -> None:
    transport = await fresh(alone, "work", "next")
    await transport.send(*sends(1))
    with Program(processes.holder, alone) as program:
        await program.say()
        program.signal(signal.SIGSTOP)
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert lease.attempt == 2
            await lease.extend(30)
            program.signal(signal.SIGCONT)
            for word in ("ack", "nack", "extend"):
                program.tell(word)
                assert await program.say() == "LeaseLostError"
            await lease.ack()
    assert await taken(transport, "work") == []
    await transport.close()


async def test_messages_are_all_there_after_restarts_under_many_senders(mortal: SQSServer) -> None:
    url, queue, total = f"{mortal.url}&timeout=8", f"many-{uuid4().hex[:8]}", 200
    transport, other = await open_sqs(url), await open_sqs(f"{url}&depth=approximate")
    await transport.declare(QueueSpec(name=queue, lease=5.0))
    sent = 0

    async def produce(first: int) -> None:
        nonlocal sent
        for number in range(first, total, 100):
            while True:  # ElasticMQ answers before it knows again which queues there are
                with suppress(QueueNotFoundError):
                    await send_surely(transport, Send(queue, Message(b"", str(number))))
                    break
                await asyncio.sleep(0.05)
            sent += 1

    tasks = [asyncio.create_task(produce(first)) for first in range(100)]
    for part in (3, 2):
        while sent < total / part:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(mortal.restart)
    await asyncio.gather(*tasks)
    stored = Counter(await taken(other, queue))
    await transport.close()
    await other.close()
    assert set(stored) == {str(number) for number in range(total)}


async def test_a_connection_that_is_cut_in_the_middle_of_a_send_says_nothing_wrong(sqs_server: SQSServer) -> None:
    chance = random.Random(SEED)
    async with Proxy(sqs_server.port) as proxy:
        url = f"sqs://key:secret@eu-west-1?endpoint=http://127.0.0.1:{proxy.port}&timeout=5&depth=approximate"
        transport = await open_sqs(url)
        queue = f"cut-{uuid4().hex[:8]}"
        await transport.declare(QueueSpec(name=queue))
        said: set[str] = set()
        for number in range(20):
            proxy.requests, proxy.answers = (
                (chance.randrange(900), None) if number % 2 else (None, chance.randrange(400))
            )
            try:
                await transport.send(Send(queue, Message(b"x" * 200, str(number))))
                said.add(str(number))
            except ConnectionLostError:
                pass
            proxy.requests = proxy.answers = None
        assert len(said) < 20, "nothing was cut"
        assert said <= set(await taken(transport, queue))
        await transport.delete(queue)
        await transport.close()


async def test_a_server_that_says_nothing_is_given_up_and_found_again(mortal: SQSServer) -> None:
    transport = await open_sqs(f"{mortal.url}&timeout=2")
    queue = f"mute-{uuid4().hex[:8]}"
    await transport.declare(QueueSpec(name=queue))
    async with transport.subscribe(queue, prefetch=1) as subscription:
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
    await transport.close()


async def test_a_queue_that_is_deleted_and_made_again_is_found(url: str) -> None:
    transport = await open_sqs(f"{url}&timeout=5")
    queue = f"gone-{uuid4().hex[:8]}"
    await transport.declare(QueueSpec(name=queue))
    await transport.send(*sends(1, queue))
    await transport.delete(queue)
    with pytest.raises(QueueNotFoundError):
        await transport.send(*sends(1, queue))
    await transport.declare(QueueSpec(name=queue, fifo=True))
    await transport.send(*sends(1, queue))
    async with transport.subscribe(queue, prefetch=1) as subscription:
        await (await receive(subscription)).ack()
    await transport.delete(queue)
    await transport.close()


async def test_what_lay_unread_while_the_process_was_stuck_is_old() -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    clock.begin()
    await asyncio.sleep(0.1)
    began = loop.time()
    assert began - clock.end() < 0.1
    clock.begin()
    await asyncio.sleep(0.1)
    stuck = loop.time()
    while loop.time() < stuck + 1.5:
        pass
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert clock.end() <= stuck
    clock.close()
