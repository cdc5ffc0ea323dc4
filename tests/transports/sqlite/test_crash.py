"""Processes killed and frozen at each moment of a message's life: nothing is lost, and each hop is made once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter

import pytest
from transports import processes
from transports.sqlite import programs
from transports.sqlite.support import Program, depth, ids_in, locked, opened, receive, sends, take

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))


async def test_every_send_that_was_acknowledged_is_there_after_the_sender_was_killed(url: str) -> None:
    chance = random.Random(SEED)
    acknowledged: list[str] = []
    async with opened(url) as transport:
        for number in range(20):
            with Program(processes.sender, url, number * 1_000_000) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0, 0.03))
                program.kill()
                acknowledged += map(str, program.rest())
        stored = Counter(await ids_in(transport))
    assert acknowledged, "the senders were killed before they sent anything"
    assert not set(acknowledged) - set(stored), f"lost with seed {SEED}"
    assert max(stored.values()) == 1, f"stored twice with seed {SEED}"
    assert len(stored) - len(acknowledged) <= 20 * 20, "only what was under way may be stored unasked"


async def test_workers_killed_at_random_moments_lose_nothing_and_make_each_hop_once(url: str) -> None:
    chance = random.Random(SEED)
    async with opened(url, "work", "next", "copies", lease=0.5) as transport:
        await transport.send(*sends(2000))
        rounds = 0
        while (await transport.depth("work")).ready and rounds < 25:
            with Program(processes.hopper, url) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0, 0.03))
            rounds += 1
        with Program(processes.hopper, url):
            while await depth(transport) != (0, 0, 0):
                await asyncio.sleep(0.05)
        moved = Counter(await ids_in(transport, "next"))
        copied = Counter(await ids_in(transport, "copies"))
    assert rounds > 3, "the workers were too fast to be killed"
    assert set(moved) == set(copied) == {str(number) for number in range(2000)}, f"lost with seed {SEED}"
    assert max(moved.values()) == 1, f"a hop was made twice with seed {SEED}"
    assert max(copied.values()) > 1, "no worker was killed while it had a message"


async def test_a_message_comes_again_when_its_worker_is_killed_after_it_received(url: str) -> None:
    async with opened(url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
            assert await program.say() == ("0", 1)
            program.kill()
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 2)
            await lease.ack()


async def test_a_message_comes_again_when_its_worker_is_killed_while_its_acknowledgement_waits_for_the_file(
    url: str,
) -> None:
    async with opened(url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
            assert await program.say() == ("0", 1)
            with locked(url):
                program.tell("ack")
                with pytest.raises(AssertionError, match="said nothing"):
                    await asyncio.to_thread(program.hear, 0.1)
                program.kill()
        assert await ids_in(transport, "next") == []
        assert await take(transport, 1) == ["0"]


async def test_a_worker_killed_at_any_statement_of_an_acknowledgement_has_done_all_of_it_or_nothing(url: str) -> None:
    with_all, with_none = 0, 0
    for statement in range(1, 20):
        async with opened(f"{url}.{statement}", "work", "next") as transport:
            await transport.send(*sends(1))
            with Program(programs.dying, f"{url}.{statement}", statement) as program:
                statements = await asyncio.to_thread(program.last_word)
            work, moved = await ids_in(transport), await ids_in(transport, "next")
        assert (work, moved) in ((["0"], []), ([], ["0"])), f"after statement {statement}"
        with_none += work == ["0"]
        with_all += moved == ["0"]
        if statements:
            assert statements.index("BEGIN") < statements.index("DELETE") < statements.index("COMMIT")
            break
    assert with_none >= 3, "it was killed before the commit at least at BEGIN, DELETE and INSERT"
    assert with_all


async def test_a_worker_that_was_frozen_past_its_lease_cannot_undo_what_the_next_one_does(url: str) -> None:
    async with opened(url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
            await program.say()
            program.signal(signal.SIGSTOP)
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription)
                assert lease.attempt == 2
                await lease.extend(60)
                program.signal(signal.SIGCONT)
                for word in ("ack", "nack", "extend"):
                    program.tell(word)
                    assert await program.say() == "LeaseLostError"
                assert await ids_in(transport, "next") == []
                assert await depth(transport) == (0, 1, 0)
                await lease.ack()
        assert await depth(transport) == (0, 0, 0)


async def test_an_acknowledgement_that_was_under_way_when_its_worker_froze_is_refused_later(url: str) -> None:
    async with opened(url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
            await program.say()
            with locked(url):
                program.tell("ack")
                await asyncio.sleep(0.1)
                program.signal(signal.SIGSTOP)
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription)
                assert lease.attempt == 2
                await lease.extend(60)
                program.signal(signal.SIGCONT)
                assert await program.say() == "LeaseLostError"
                assert await ids_in(transport, "next") == []
                await lease.ack()


async def test_a_process_that_is_killed_leaves_nothing_behind_that_others_stumble_over(url: str) -> None:
    async with opened(url) as transport:
        for _ in range(3):
            with Program(programs.listener, url) as program:
                await program.say()
        started = time.monotonic()
        await transport.send(*sends(100))
        assert time.monotonic() - started < 1.0
        assert len(await take(transport, 100)) == 100
