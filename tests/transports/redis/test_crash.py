"""Processes killed and frozen at each moment of a message's life: nothing is lost, and each hop is made once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

from brokers.redis_server import RedisServer
from transports import processes
from transports.redis import programs
from transports.redis.support import depth, ids_in, opened
from transports.sqlite.support import Program
from transports.words import receive, sends

from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message, Send
from oncue.transports.base import Transport

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))


async def test_every_send_that_was_acknowledged_is_there_after_the_sender_was_killed(server: RedisServer) -> None:
    chance = random.Random(SEED)
    acknowledged: list[str] = []
    async with opened(server.url) as transport:
        for number in range(10):
            with Program(processes.sender, server.url, number * 1_000_000) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0, 0.03))
                program.kill()
                acknowledged += map(str, program.rest())
        stored = Counter(await ids_in(transport))
    assert acknowledged, "the senders were killed before they sent anything"
    assert not set(acknowledged) - set(stored), f"lost with seed {SEED}"
    assert max(stored.values()) == 1, f"stored twice with seed {SEED}"
    assert len(stored) - len(acknowledged) <= 10 * 20, "only what was under way may be stored unasked"


async def test_workers_killed_at_random_moments_lose_nothing_and_make_each_hop_once(server: RedisServer) -> None:
    chance = random.Random(SEED)
    total = rounds = interrupted = 0
    async with opened(server.url, "work", "next", "copies", lease=0.5) as transport:
        while interrupted < 5 and rounds < 50:
            await transport.send(*sends(500, first=total))
            total += 500
            with Program(processes.hopper, server.url) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0, 0.03))
            interrupted += bool((await transport.depth("work")).leased)
            rounds += 1
        with Program(processes.hopper, server.url):
            while await depth(transport) != (0, 0, 0):
                await asyncio.sleep(0.05)
        moved = Counter(await ids_in(transport, "next"))
        copied = Counter(await ids_in(transport, "copies"))
    assert interrupted >= 5, f"{rounds} workers were killed, and few of them had messages"
    assert set(moved) == set(copied) == {str(number) for number in range(total)}, f"lost with seed {SEED}"
    assert max(moved.values()) == 1, f"a hop was made twice with seed {SEED}"


async def test_a_message_comes_again_when_its_worker_is_killed_after_it_received(server: RedisServer) -> None:
    async with opened(server.url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, server.url) as program:
            assert await program.say() == ("0", 1)
            program.kill()
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 2)
            await lease.ack()


async def test_a_worker_killed_at_any_moment_of_an_acknowledgement_has_done_all_of_it_or_nothing(
    server: RedisServer,
) -> None:
    with_all = with_none = 0
    for moment in range(1, 20):
        async with opened(f"{server.url}?tag=moment-{moment}", "work", "next") as transport:
            await transport.send(*sends(1))
            with Program(programs.dying, f"{server.url}?tag=moment-{moment}", moment) as program:
                said = [await asyncio.to_thread(program.last_word)]
                while said[-1] not in {None, "end"}:
                    said.append(await asyncio.to_thread(program.last_word))
            work, moved = await ids_in(transport), await ids_in(transport, "next")
        assert (work, moved) in ((["0"], []), ([], ["0"])), f"killed {said[-2]}"
        with_none += work == ["0"]
        with_all += moved == ["0"]
        if said[-1] == "end":
            assert said.index("after it was received") < said.index("before a write") < said.index("after a write")
            break
    assert with_none >= 2, "it was killed after it received, and before it wrote"
    assert with_all >= 2


async def test_a_worker_that_was_frozen_past_its_lease_cannot_undo_what_the_next_one_does(server: RedisServer) -> None:
    async with opened(server.url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, server.url) as program:
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


async def test_a_message_that_kills_its_workers_ends_up_alone(server: RedisServer) -> None:
    async with opened(server.url, "work", "next", "copies", lease=0.5) as transport:
        await transport.send(Send("work", Message(b"", "poison")), *sends(30))
        attempts = []
        for _ in range(4):
            with Program(programs.poisoned, server.url, 10) as program:
                await program.say()
                await asyncio.to_thread(program.last_word)
            await asyncio.sleep(0.6)
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription)
                attempts.append((lease.message.id, lease.attempt))
                await lease.release()
        with Program(processes.hopper, server.url):
            while await depth(transport) != (0, 0, 0):
                await asyncio.sleep(0.05)
        moved = Counter(await ids_in(transport, "next"))
        assert moved == Counter(["poison", *(str(number) for number in range(30))])
    assert attempts[-1] == ("poison", 5), "a suspect is offered first, and each of its deaths is counted"


async def test_a_server_that_is_killed_again_and_again_has_all_that_it_confirmed(careful_server: RedisServer) -> None:
    chance = random.Random(SEED)
    confirmed: list[str] = []
    async with opened(careful_server.url, lease=5.0) as transport:
        for number in range(8):
            with Program(processes.sender, careful_server.url, number * 1_000_000) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0.01, 0.05))
                await asyncio.to_thread(careful_server.kill)
                await asyncio.sleep(0.05)
                confirmed += [str(word) for word in program.rest() if isinstance(word, int)]
            await asyncio.to_thread(careful_server.start)
        async with asyncio.timeout(20):
            stored = Counter(await _surely(transport))
    assert len(confirmed) > 100
    assert not set(confirmed) - set(stored), f"lost with seed {SEED}"
    assert max(stored.values()) == 1


async def _surely(transport: Transport) -> list[str]:
    while True:
        try:
            return await ids_in(transport)
        except ConnectionLostError:
            await asyncio.sleep(0.05)
