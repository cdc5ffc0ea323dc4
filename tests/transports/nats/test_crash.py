"""Processes killed and frozen at each moment of a message's life: nothing is lost, and who goes on late changes nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

from brokers.nats_server import NATSServer
from transports import processes
from transports.nats.support import depth, opened, settled_down, taken
from transports.rabbitmq import programs
from transports.sqlite.support import Program
from transports.words import receive, sends

from oncue.core.message import Message, Send

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))
LEASE = 1.0


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


async def test_workers_killed_at_random_moments_lose_nothing_and_hand_on_once(url: str) -> None:
    chance = random.Random(SEED)
    rounds, each, interrupted = 6, 700, 0
    total = rounds * each
    async with opened(url, "work", "next", "copies", lease=LEASE) as transport:
        for number in range(rounds):
            await transport.send(*sends(each, first=number * each))
            with Program(processes.hopper, url) as program:
                await program.say()
                await asyncio.sleep(chance.uniform(0.01, 0.06))
            interrupted += any(await depth(transport))
        with Program(processes.hopper, url):
            await settled_down(transport, "work")
        moved = Counter(await taken(transport, "next"))
    assert interrupted > 2, "the workers were too fast to be killed"
    assert set(moved) == {str(number) for number in range(total)}, f"lost with seed {SEED}"
    assert max(moved.values()) == 1, f"handed on twice with seed {SEED}"


async def test_each_death_of_a_worker_is_counted(url: str) -> None:
    async with opened(url, "work", "next", lease=0.4) as transport:
        await transport.send(*sends(1))
        for attempt in range(1, 7):
            with Program(processes.holder, url) as program:
                assert await program.say() == ("0", attempt)
                program.kill()
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 7)
            await lease.ack()


async def test_a_worker_that_was_frozen_cannot_undo_what_the_next_one_does(url: str) -> None:
    async with opened(url, "work", "next", lease=LEASE) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
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
                assert await depth(transport) == (0, 1, 0)
                await lease.ack()
        assert await taken(transport) == []
        assert await taken(transport, "next") == []


async def test_a_message_that_kills_its_workers_ends_up_alone(url: str) -> None:
    async with opened(url, "work", "next", "copies", lease=0.5) as transport:
        await transport.send(Send("work", Message(b"", "poison")), *sends(30))
        for _ in range(4):
            with Program(programs.poisoned, url, 10) as program:
                await program.say()
                await asyncio.to_thread(program.last_word)
        await asyncio.sleep(1.0)
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


async def test_a_server_that_is_killed_has_all_that_it_confirmed(mortal: NATSServer, mortal_url: str) -> None:
    async with opened(mortal_url) as transport:
        with Program(processes.sender, mortal_url, 0) as program:
            await program.say()
            await asyncio.sleep(random.Random(SEED).uniform(0.1, 0.3))
            await asyncio.to_thread(mortal.kill)
            await asyncio.sleep(0.05)
            confirmed = {str(word) for word in program.rest() if isinstance(word, int)}
        await asyncio.to_thread(mortal.start)
        stored = Counter(await taken(transport))
    assert len(confirmed) > 20
    assert not confirmed - set(stored), f"lost with seed {SEED}"
    assert max(stored.values()) == 1


async def test_a_frozen_server_takes_no_lease_away_that_its_owner_still_has(
    mortal: NATSServer, mortal_url: str
) -> None:
    async with opened(f"{mortal_url}&timeout=3", lease=3.0) as transport:
        await transport.send(*sends(2))
        async with transport.subscribe("work", prefetch=3) as subscription:
            first, second = await receive(subscription), await receive(subscription)
            mortal.freeze()
            await asyncio.sleep(0.5)
            mortal.thaw()
            await first.extend(3.0)
            await first.ack()
            await second.ack()
        assert await depth(transport) == (0, 0, 0)


async def test_what_a_server_remembers_as_acknowledged_and_keeps_all_the_same_is_deleted(url: str) -> None:
    """Killed servers do so. Here the consumer's word is ours, and the messages and who deletes them are real."""
    async with opened(url) as transport:
        await transport.send(*sends(5), Send("work", Message(b"", "later"), delay=60))
        queues = transport._queues
        place = await queues.place("work")
        stream = await queues.jetstream.stream(place.stream)
        consumer = await queues.jetstream.consumer(place.stream, place.consumer)
        consumer.ack_floor.stream_seq = stream.state.first_seq + 2
        await queues._sweep("work", stream, consumer)
        assert await depth(transport) == (2, 0, 1)
        assert sorted(await taken(transport)) == ["3", "4"]
