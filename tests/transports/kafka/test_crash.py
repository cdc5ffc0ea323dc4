"""Processes killed and frozen at each moment of a message's life: nothing is lost, and who goes on late changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter

from transports import processes
from transports.kafka import programs
from transports.kafka.support import opened, settled_down, taken
from transports.sqlite.support import Program
from transports.words import receive, sends

from oncue.dead import list_dead
from oncue.transports.base import Depth

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))


async def test_every_send_that_was_confirmed_is_there_after_the_sender_was_killed(url: str) -> None:
    chance = random.Random(SEED)
    confirmed: list[str] = []
    async with opened(url) as transport:
        for number in range(3):
            with Program(processes.sender, url, number * 1_000_000) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0.1, 0.3))
                program.kill()
                confirmed += map(str, program.rest())
        await asyncio.sleep(0.2)  # what is under way
        stored = Counter(await taken(transport))
    assert confirmed, "the senders were killed before they sent anything"
    assert not set(confirmed) - set(stored), f"lost with seed {SEED}"
    assert max(stored.values()) == 1, f"stored twice with seed {SEED}"


async def test_workers_killed_at_random_moments_lose_nothing(url: str) -> None:
    chance = random.Random(SEED)
    total = 2000
    async with opened(url, "work", "next", "copies") as transport:
        await transport.send(*sends(total))
        for _ in range(3):
            with Program(processes.hopper, url) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0.4, 0.8))
        with Program(processes.hopper, url):
            await settled_down(transport, "work")
        moved = Counter(await taken(transport, "next"))
    assert set(moved) == {str(number) for number in range(total)}, f"lost with seed {SEED}"
    assert moved.total() <= total + 3 * 20, "more came twice than was in hand"


async def test_each_death_of_a_worker_is_counted(url: str) -> None:
    async with opened(url, "work", "next") as transport:
        await transport.send(*sends(1))
        for attempt in range(1, 3):
            with Program(processes.holder, url) as program:
                assert await program.say() == ("0", attempt)
                program.kill()
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 3)
            await lease.ack()


async def test_a_worker_that_was_frozen_cannot_undo_what_the_next_one_does(url: str) -> None:
    async with opened(url, "work", "next") as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
            await program.say()
            program.signal(signal.SIGSTOP)
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription, within=20)
                assert lease.attempt == 2
                program.signal(signal.SIGCONT)
                await asyncio.sleep(3.0)  # until it has heard that it is out
                for word in ("nack", "extend", "ack"):
                    program.tell(word)
                    assert await program.say() == "LeaseLostError"
                await lease.ack()
        assert await taken(transport) == []
        assert set(await taken(transport, "next")) <= {"0"}


async def test_what_kills_its_workers_ends_as_a_dead_letter_and_its_neighbours_are_all_done(url: str) -> None:
    done: Counter[str] = Counter()
    words = [str(number) for number in range(30)]
    async with opened(url, "asya-job", "asya-job-dlq") as transport:
        app = programs.jobs(url)
        async with app:
            await app.actors["job"].send_many(["poison", *words])
        deaths = 0

        async def all_done() -> bool:
            depth = await transport.depth("asya-job")
            return depth == Depth(0, 0, None) and bool((await transport.depth("asya-job-dlq")).ready)

        async with asyncio.timeout(100):
            while not await all_done():
                with Program(programs.worker, url) as program:
                    while program._process.is_alive() and not await all_done():
                        await asyncio.sleep(0.1)
                    deaths += not program._process.is_alive()
                    program.kill()
                    done.update(program.rest())
        (letter,) = await list_dead(transport, "asya-job-dlq")
        assert json.loads(letter.stored.body)["payload"] == "poison"
    assert deaths == programs.LIMIT
    assert set(done) == set(words), "a neighbour was lost"
