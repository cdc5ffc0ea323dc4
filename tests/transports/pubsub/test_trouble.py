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
from brokers.pubsub_server import PubSubServer
from transports import processes
from transports.proxy import Proxy
from transports.pubsub import programs
from transports.sqlite.support import Program
from transports.words import receive, send_surely, sends

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec, Transport
from oncue.transports.pubsub import open_pubsub

SEED = int(os.environ.get("ONCUE_TEST_SEED", "20"))
LEASE = 3.0


async def fresh(url: str, *queues: str) -> Transport:
    transport = await open_pubsub(url)
    for queue in queues:
        await transport.delete(queue)
        await transport.declare(QueueSpec(name=queue, lease=LEASE))
    return transport


async def taken(transport: Transport, queue: str, quiet: float = LEASE + 3.0) -> list[str]:
    """The ids of all messages, which are gone then. Nothing is counted there, so it waits until none can come any more."""
    ids: list[str] = []
    async with transport.subscribe(queue, prefetch=100) as subscription:
        while True:
            try:
                async with asyncio.timeout(quiet):
                    lease = await subscription.receive()
            except TimeoutError:
                return ids
            with suppress(LeaseLostError):
                await lease.ack()
                ids.append(lease.message.id)


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


async def test_workers_killed_at_random_moments_lose_nothing(alone: str) -> None:
    transport = await fresh(alone, "work", "next", "copies")
    chance = random.Random(SEED)
    total = 300
    await transport.send(*sends(total))
    for _ in range(3):
        with Program(processes.hopper, alone) as program:
            await program.say()
            await asyncio.sleep(chance.uniform(0.05, 0.3))
    moved: Counter[str] = Counter()
    with Program(processes.hopper, alone):
        async with asyncio.timeout(60), transport.subscribe("next", prefetch=50) as subscription:
            while len(moved) < total:
                lease = await subscription.receive()
                moved[lease.message.id] += 1
                await lease.ack()
    assert await taken(transport, "work") == []
    await transport.close()
    assert set(moved) == {str(number) for number in range(total)}, f"lost with seed {SEED}"


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


async def test_what_ends_its_workers_is_counted_and_handed_out_alone_among_such(alone: str) -> None:
    transport = await fresh(alone, "work")
    await transport.send(*sends(1))
    for attempt in (1, 2):
        with Program(processes.holder, alone) as program:
            assert await program.say() == ("0", attempt)
            program.kill()
    await transport.send(*sends(1, first=1))
    found = set()
    async with transport.subscribe("work", prefetch=2) as subscription:
        for _ in range(2):
            lease = await receive(
                subscription, within=20
            )  # it was killed before it could ask for less than ten seconds
            await lease.extend(60)
            found.add((lease.message.id, lease.attempt))
    assert found == {("0", 3), ("1", 1)}
    await transport.close()


@pytest.mark.timeout(120)
async def test_a_message_that_kills_its_workers_at_once_takes_no_others_along(alone: str) -> None:
    transport = await fresh(alone, "work")
    await transport.send(*sends(5), Send("work", Message(b"", "poison")), *sends(5, first=5))
    for _ in range(4):
        with Program(programs.poisoned, alone, 20) as program:
            await program.say()
            await asyncio.to_thread(program.last_word)
    attempts: dict[str, int] = {}
    async with transport.subscribe("work", prefetch=20) as subscription:
        with suppress(TimeoutError):
            while True:
                lease = await receive(subscription, within=2 * LEASE if "poison" in attempts else 30)
                attempts[lease.message.id] = lease.attempt
                await lease.ack()
    assert attempts.pop("poison") == 5
    assert max(attempts.values(), default=1) <= 3, "others died along with it more often than it takes to know it"
    await transport.close()


async def test_a_restart_of_the_emulator_loses_all_by_its_own_fault(mortal: PubSubServer) -> None:
    """So that a restart with data kept cannot be shown; who is connected goes on with the new one all the same."""
    transport = await open_pubsub(f"{mortal.url}&timeout=5")
    queue = f"gone-{uuid4().hex[:8]}"
    await transport.declare(QueueSpec(name=queue))
    await transport.send(*sends(3, queue))
    async with transport.subscribe(queue, prefetch=1) as subscription:
        await (await receive(subscription)).release()
        await asyncio.to_thread(mortal.kill)
        with pytest.raises(ConnectionLostError) as caught:
            await transport.send(*sends(1, queue))
        assert "\n" not in str(caught.value)
        await asyncio.to_thread(mortal.start)
        async with asyncio.timeout(20):
            while True:
                try:
                    await send_surely(transport, *sends(1, queue))
                except QueueNotFoundError:
                    break
        with pytest.raises((QueueNotFoundError, LeaseLostError)):
            await (await receive(subscription)).ack()  # where it was fetched ahead
        await transport.declare(QueueSpec(name=queue))
        await transport.send(Send(queue, Message(b"", "after")))
        lease = await receive(subscription)
        assert lease.message.id == "after"
        await lease.ack()
    await transport.close()


async def test_a_connection_that_is_cut_in_the_middle_of_a_send_says_nothing_wrong(pubsub_server: PubSubServer) -> None:
    chance = random.Random(SEED)
    async with Proxy(pubsub_server.port) as proxy:
        transport = await open_pubsub(f"pubsub://oncue-tests?emulator=127.0.0.1:{proxy.port}&timeout=5")
        queue = f"cut-{uuid4().hex[:8]}"
        await transport.declare(QueueSpec(name=queue))
        said: set[str] = set()
        for number in range(20):
            proxy.requests, proxy.answers = (
                (chance.randrange(3000), None) if number % 2 else (None, chance.randrange(1000))
            )
            try:
                await transport.send(Send(queue, Message(b"x" * 200, str(number))))
                said.add(str(number))
            except ConnectionLostError:
                pass
            proxy.requests = proxy.answers = None
        assert 0 < len(said) < 20
        await send_surely(transport, Send(queue, Message(b"", "last")))
        assert said <= set(await taken(transport, queue, quiet=2.0))
        await transport.delete(queue)
        await transport.close()


async def test_connections_that_are_cut_again_and_again_lose_nothing(pubsub_server: PubSubServer) -> None:
    chance, total = random.Random(SEED), 300
    async with Proxy(pubsub_server.port) as proxy:
        transport = await open_pubsub(f"pubsub://oncue-tests?emulator=127.0.0.1:{proxy.port}&timeout=5")
        queue = f"cuts-{uuid4().hex[:8]}"
        await transport.declare(QueueSpec(name=queue, lease=LEASE))
        seen: set[str] = set()

        async def produce() -> None:
            for number in range(total):
                await send_surely(transport, Send(queue, Message(b"", str(number))))

        async def consume() -> None:
            async with transport.subscribe(queue, prefetch=20) as subscription:
                while len(seen) < total:
                    lease = await receive(subscription, within=30)
                    seen.add(lease.message.id)
                    with suppress(ConnectionLostError, LeaseLostError):  # it may be done, though nobody said so
                        await lease.ack()

        async def cut() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0.1, 0.8))
                proxy.cut()

        cutting = asyncio.create_task(cut())
        try:
            async with asyncio.timeout(60):
                consuming = asyncio.create_task(consume())
                await produce()
                cutting.cancel()  # what is pulled by a connection that was cut is hidden for ten seconds
                await consuming
        finally:
            cutting.cancel()
        assert seen == {str(number) for number in range(total)}
        await transport.close()


async def test_a_half_open_connection_is_given_up_for_a_new_one(pubsub_server: PubSubServer) -> None:
    async with Proxy(pubsub_server.port) as proxy:
        transport = await open_pubsub(f"pubsub://oncue-tests?emulator=127.0.0.1:{proxy.port}&timeout=2&wait=1")
        queue = f"half-{uuid4().hex[:8]}"
        await transport.declare(QueueSpec(name=queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            waiting = asyncio.ensure_future(subscription.receive())
            await asyncio.sleep(0.2)
            stale = set(proxy._tasks)
            proxy.mute = True  # nobody says that it is gone
            with pytest.raises(ConnectionLostError, match="no answer in time"):
                await transport.send(*sends(1, queue))
            with pytest.raises(ConnectionLostError):
                async with asyncio.timeout(20):
                    await waiting
            proxy.mute = False
            await send_surely(transport, Send(queue, Message(b"", "after")))
            assert set(proxy._tasks) - stale, "the dead connection was used again"
            assert (await receive(subscription)).message.id in {"0", "after"}
        await transport.close()


async def test_a_server_that_says_nothing_is_given_up_and_found_again(mortal: PubSubServer) -> None:
    transport = await open_pubsub(f"{mortal.url}&timeout=2&wait=1")
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
    transport = await open_pubsub(f"{url}&timeout=5")
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


async def test_a_lease_of_a_queue_that_is_gone_takes_up_no_room(url: str) -> None:
    transport, other = await open_pubsub(url), await open_pubsub(url)
    queue = f"gone-{uuid4().hex[:8]}"
    await transport.declare(QueueSpec(name=queue))
    await transport.send(*sends(1, queue))
    async with transport.subscribe(queue, prefetch=1) as subscription:
        lease = await receive(subscription)
        await other.delete(queue)
        with pytest.raises(LeaseLostError):
            await lease.ack()
        await other.declare(QueueSpec(name=queue))
        await other.send(Send(queue, Message(b"", "after")))
        async with asyncio.timeout(20):
            while True:
                with suppress(QueueNotFoundError):  # of the time when it was not there
                    lease = await subscription.receive()
                    break
        assert lease.message.id == "after"
        await lease.ack()
    await transport.delete(queue)
    await transport.close()
    await other.close()
