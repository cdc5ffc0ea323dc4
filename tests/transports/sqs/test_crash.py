"""Processes killed and frozen at each moment of a message's life: nothing is lost, and who goes on late changes nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

import pytest
from brokers.sqs_server import SQSServer
from transports import processes
from transports.rabbitmq import programs
from transports.sqlite.support import Program
from transports.sqs.support import fresh, left, settled_down, taken
from transports.words import receive, sends

from oncue.core.message import Message, Send
from oncue.transports.sqs.clock import Clock

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))
pytestmark = pytest.mark.timeout(150)


async def test_every_send_that_was_confirmed_is_there_after_the_sender_was_killed(counted: str) -> None:
    transport = await fresh(counted, "work")
    chance = random.Random(SEED)
    confirmed: list[str] = []
    for number in range(3):
        with Program(processes.sender, counted, number * 1_000_000) as program:
            await program.say()
            await asyncio.sleep(chance.uniform(0.1, 0.3))
            program.kill()
            confirmed += [str(word) for word in program.rest() if isinstance(word, int)]
    stored = Counter(await taken(transport, "work"))
    await transport.close()
    assert confirmed, "the senders were killed before they sent anything"
    assert not set(confirmed) - set(stored), f"lost with seed {SEED}"


async def test_workers_killed_at_random_moments_lose_nothing(counted: str) -> None:
    transport = await fresh(counted, "work", "next", "copies", lease=1.0)
    chance = random.Random(SEED)
    total = 500
    await transport.send(*sends(total))
    rounds = 0
    while await left(transport, "work") and rounds < 4:
        with Program(processes.hopper, counted) as program:
            await program.say()
            await asyncio.sleep(chance.uniform(0.05, 0.2))
        rounds += 1
    with Program(processes.hopper, counted):
        await settled_down(transport, "work")
    moved = Counter(await taken(transport, "next"))
    await transport.close()
    assert rounds > 2, "the workers were too fast to be killed"
    assert set(moved) == {str(number) for number in range(total)}, f"lost with seed {SEED}"


async def test_each_death_of_a_worker_is_counted(counted: str) -> None:
    transport = await fresh(counted, "work", "next", lease=1.0)
    await transport.send(*sends(1))
    for attempt in (1, 2, 3):
        with Program(processes.holder, counted) as program:
            assert await program.say() == ("0", attempt)
            program.kill()
    async with transport.subscribe("work", prefetch=1) as subscription:
        lease = await receive(subscription)
        assert (lease.message.id, lease.attempt) == ("0", 4)
        await lease.ack()
    await transport.close()


async def test_a_worker_that_was_frozen_cannot_undo_what_the_next_one_does(counted: str) -> None:
    transport = await fresh(counted, "work", "next", lease=1.0)
    await transport.send(*sends(1))
    with Program(processes.holder, counted) as program:
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
    assert await taken(transport, "next") == []
    await transport.close()


async def test_a_message_that_kills_its_workers_ends_up_alone(counted: str) -> None:
    transport = await fresh(counted, "work", "next", "copies", lease=1.0)
    await transport.send(Send("work", Message(b"", "poison")), *sends(15))
    for _ in range(4):
        with Program(programs.poisoned, counted, 10) as program:
            await program.say()
            await asyncio.to_thread(program.last_word)
    attempts = {}
    async with transport.subscribe("work", prefetch=40) as subscription:
        while "poison" not in attempts:
            lease = await receive(subscription)
            attempts[lease.message.id] = lease.attempt
            await lease.ack()
    await transport.close()
    assert attempts.pop("poison") == 5
    assert max(attempts.values(), default=1) <= 3, "the others died along with it more often than it takes to know it"


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_server_that_is_killed_has_all_that_it_confirmed(mortal: SQSServer, how: str) -> None:
    """It is ElasticMQ that this is about: what other tests count on."""
    url = f"{mortal.url}&depth=approximate"
    transport = await fresh(url, "work")
    with Program(processes.sender, url, 0) as program:
        await program.say()
        confirmed = {str(await program.say()) for _ in range(50)}
        await asyncio.to_thread(getattr(mortal, how))
        await asyncio.sleep(0.05)
        confirmed |= {str(word) for word in program.rest() if isinstance(word, int)}
    await asyncio.to_thread(mortal.start)
    stored = await taken(transport, "work")
    await transport.close()
    assert not confirmed - set(stored), f"lost with seed {SEED}"


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


async def test_many_suspects_are_worked_off_one_after_the_other(counted: str) -> None:
    total = 20
    transport = await fresh(counted, "work", lease=1.0)
    await transport.send(*sends(total))
    for _ in range(2):  # their holder dies
        async with transport.subscribe("work", prefetch=total) as subscription:
            for _ in range(total):
                await receive(subscription)
            await asyncio.sleep(1.1)
    seen, held = set(), 0

    async def work() -> None:
        nonlocal held
        while True:
            lease = await subscription.receive()
            held += 1
            assert held == 1, "two suspects at once"
            await asyncio.sleep(0.02)
            held -= 1
            await lease.ack()
            seen.add(lease.message.id)

    async with transport.subscribe("work", prefetch=total) as subscription:
        tasks = [asyncio.create_task(work()) for _ in range(total)]
        await settled_down(transport, "work")
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
    assert len(seen) == total
    await transport.close()
