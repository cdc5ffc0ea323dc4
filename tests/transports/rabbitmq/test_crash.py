"""Processes killed and frozen at each moment of a message's life: nothing is lost, and who goes on late changes nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

import pytest
from brokers.rabbitmq_server import RabbitMQServer
from transports import processes
from transports.rabbitmq import programs
from transports.rabbitmq.support import opened, settled_down, taken
from transports.sqlite.support import Program
from transports.words import receive, sends

from oncue.core.message import Message, Send

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))
KINDS = pytest.mark.parametrize("options", ["", "?queues=classic"], ids=["quorum", "classic"])


async def test_every_send_that_was_confirmed_is_there_after_the_sender_was_killed(url: str) -> None:
    chance = random.Random(SEED)
    confirmed: list[str] = []
    async with opened(url) as transport:
        for number in range(5):
            with Program(processes.sender, url, number * 1_000_000) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0.02, 0.1))
                program.kill()
                confirmed += map(str, program.rest())
        await asyncio.sleep(0.1)  # what is under way
        stored = Counter(await taken(transport))
    assert confirmed, "the senders were killed before they sent anything"
    assert not set(confirmed) - set(stored), f"lost with seed {SEED}"
    assert max(stored.values()) == 1, f"stored twice with seed {SEED}"


@KINDS
async def test_workers_killed_at_random_moments_lose_nothing(url: str, options: str) -> None:
    chance = random.Random(SEED)
    total = 2000
    url += options
    async with opened(url, "work", "next", "copies") as transport:
        await transport.send(*sends(total))
        rounds = 0
        while (await transport.depth("work")).ready and rounds < 8:
            with Program(processes.hopper, url) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0.02, 0.08))
            rounds += 1
        with Program(processes.hopper, url):
            await settled_down(transport, "work")
            await asyncio.sleep(0.3)
        moved = Counter(await taken(transport, "next"))
    assert rounds > 3, "the workers were too fast to be killed"
    assert set(moved) == {str(number) for number in range(total)}, f"lost with seed {SEED}"


@KINDS
async def test_each_death_of_a_worker_is_counted(url: str, options: str) -> None:
    async with opened(url + options, "work", "next") as transport:
        await transport.send(*sends(1))
        for attempt in range(1, 9):  # so often that the server's own count is written down in between
            with Program(processes.holder, url + options) as program:
                assert await program.say() == ("0", attempt)
                program.kill()
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 9)
            await lease.ack()


async def test_a_worker_that_was_frozen_cannot_undo_what_the_next_one_does(url: str) -> None:
    async with opened(url, "work", "next") as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, f"{url}?heartbeat=1") as program:
            await program.say()
            program.signal(signal.SIGSTOP)
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription)
                assert lease.attempt == 2
                program.signal(signal.SIGCONT)
                for word in ("ack", "nack", "extend"):
                    program.tell(word)
                    assert await program.say() == "LeaseLostError"
                await lease.ack()
        assert await taken(transport) == []
        assert set(await taken(transport, "next")) <= {"0"}  # sent before the acknowledgement was refused


@KINDS
async def test_a_message_that_kills_its_workers_ends_up_alone(url: str, options: str) -> None:
    url += options
    async with opened(url, "work", "next", "copies") as transport:
        await transport.send(Send("work", Message(b"", "poison")), *sends(30))
        for _ in range(4):
            with Program(programs.poisoned, url, 10) as program:
                await program.say()
                await asyncio.to_thread(program.last_word)
        attempts = {}
        async with transport.subscribe("work", prefetch=40) as subscription:
            while "poison" not in attempts:
                lease = await receive(subscription)
                attempts[lease.message.id] = lease.attempt
                await lease.release() if lease.message.id == "poison" else await lease.ack()
        assert attempts.pop("poison") == 5
        assert max(attempts.values(), default=1) <= 4, (
            "the others died along with it more often than it takes to know it"
        )


async def test_a_server_that_is_killed_has_all_that_it_confirmed(mortal: RabbitMQServer) -> None:
    async with opened(mortal.url, "work") as transport:
        await taken(transport)
        await asyncio.sleep(1.0)  # for as long the server keeps a new quorum queue's place in its memory alone
        with Program(processes.sender, mortal.url, 0) as program:
            await program.say()
            await asyncio.sleep(random.Random(SEED).uniform(0.1, 0.3))
            await asyncio.to_thread(mortal.kill)
            await asyncio.sleep(0.05)
            confirmed = {str(word) for word in program.rest() if isinstance(word, int)}
        assert len(confirmed) > 50
        await asyncio.to_thread(mortal.start)
        async with asyncio.timeout(30):
            while confirmed:  # a queue whose server has just begun anew seems empty for a moment
                confirmed -= set(await taken(transport))
