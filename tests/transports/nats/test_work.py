"""What becomes of messages in the server: names of sendings, leases, delays where the server does not help, and what it costs."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import pytest
import uvloop
from brokers.nats_server import NATSServer, old_program
from transports.nats.support import QUIET, Wire, depth, opened, other_program, prefix_of, settled_down, taken
from transports.words import receive, send_surely, sends

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    QueueNotFoundError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec, Subscription


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NATSServer]:
    """A server that does not publish by itself what is due."""
    server = NATSServer(tmp_path_factory.mktemp("old"), binary=old_program())
    try:
        server.start()
        yield server
    finally:
        server.close()


# Sending


async def test_a_message_may_be_sent_as_often_as_one_likes_and_a_repetition_is_stored_once(url: str) -> None:
    async with Wire(url) as wire, opened(url) as observer, opened(wire.url) as transport:
        (one,) = sends(1)
        await transport.send(one, one)
        await transport.send(one)
        assert (await observer.depth("work")).ready == 3
        wire.answers = 0
        with pytest.raises(ConnectionLostError):
            await transport.send(one)
        await send_surely(transport, one)
        assert (await observer.depth("work")).ready == 4
        await transport.send(one)
        assert (await observer.depth("work")).ready == 5


async def test_what_an_acknowledgement_sends_is_stored_once_however_often_it_is_tried(url: str) -> None:
    async with (
        Wire(url) as wire,
        opened(wire.url, "work", "next") as transport,
        opened(url, "work", "next") as observer,
    ):
        await transport.send(*sends(1))
        twins = [Send("next", Message(b"", "1")), Send("next", Message(b"", "1")), Send("next", Message(b"", "2"), 0.2)]
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            wire.answers = 0
            with pytest.raises(ConnectionLostError):
                await lease.ack(*twins)
            while True:
                try:
                    await lease.ack(*twins)
                    break
                except ConnectionLostError:
                    await asyncio.sleep(0.01)
        assert await depth(observer) == (0, 0, 0)
        await asyncio.sleep(0.8)
        assert Counter(await taken(observer, "next")) == {"1": 2, "2": 1}


async def test_a_handler_that_runs_again_sends_its_children_once(url: str) -> None:
    async with opened(url, "work", "next") as transport:
        await transport.send(*sends(1))
        child = Send("next", Message(b"", "child"))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            with pytest.raises(QueueNotFoundError):  # so that the child is stored, and the message comes again
                try:
                    await lease.ack(child, Send("missing", Message(b"", "1")))
                except Exception as error:
                    raise getattr(error, "failed", {1: error})[1] from error
            await lease.nack(delay=0.1)
            again = await receive(subscription)
            assert again.attempt == 2
            await again.ack(child)
        assert await taken(transport, "next") == ["child"]


async def test_a_redriven_message_is_a_new_one_though_it_has_its_id(url: str) -> None:
    async with opened(url, "work", "dead") as transport:
        await transport.send(*sends(1))
        for _ in range(3):
            for here, there in (("work", "dead"), ("dead", "work")):
                async with transport.subscribe(here, prefetch=1) as subscription:
                    lease = await receive(subscription)
                    assert lease.attempt == 1
                    await lease.ack(Send(there, lease.message))
        assert await taken(transport) == ["0"]


# Leases


@pytest.mark.parametrize("looked", [True, False], ids=["whatever its clock says", "by its clock"])
async def test_who_held_a_message_for_too_long_puts_nothing_back(url: str, *, looked: bool) -> None:
    async with opened(url, lease=1.0) as transport, opened(url, lease=1.0) as other:
        await transport.send(*sends(2))
        async with (
            transport.subscribe("work", prefetch=2) as subscription,
            other.subscribe("work", prefetch=3) as next_one,
        ):
            old = [await receive(subscription) for _ in range(2)]
            subscription._lapse.cancel()  # as if this process were frozen, after it had looked at its clock
            for lease in old:
                lease.until = math.inf
                lease.deadline = math.inf if looked else lease.deadline
            new = [await receive(next_one) for _ in range(2)]
            assert {lease.attempt for lease in new} == {2}
            for settle in (old[0].nack(), old[1].release()):
                with pytest.raises(LeaseLostError):
                    await settle
            if not looked:
                with pytest.raises(LeaseLostError):
                    await old[0].ack()
            assert await depth(transport) == (0, 2, 0)
            for lease in new:
                await lease.ack()
        assert await depth(transport) == (0, 0, 0)


async def test_what_reached_nobody_is_no_attempt(url: str) -> None:
    async with opened(url) as transport, other_program(url) as js:
        await transport.send(*sends(1))
        pulled = await js.pull_subscribe_bind("oncue", f"{prefix_of(url)}-work")
        (message,) = await pulled.fetch(1)
        await message.nak()  # delivered again at once, as it is when who asked for it does not listen any more
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("0", 1)
            await lease.ack()
        assert await depth(transport) == (0, 0, 0)


async def test_a_lease_is_kept_for_longer_than_the_server_waits_by_itself(url: str, server: NATSServer) -> None:
    async with opened(url, lease=0.4) as transport, opened(url, lease=0.4) as other:
        await transport.send(*sends(1))
        async with (
            transport.subscribe("work", prefetch=1) as subscription,
            other.subscribe("work", prefetch=1) as waiting,
        ):
            lease = await receive(subscription)
            await lease.extend(30)
            with pytest.raises(TimeoutError):
                await receive(waiting, within=1.5)
            await lease.ack()
        assert await depth(transport) == (0, 0, 0)


async def test_suspects_are_put_off_while_another_one_is_held(url: str) -> None:
    async with opened(url, lease=0.5) as transport:
        await transport.send(*sends(3))
        for _ in range(2):
            async with transport.subscribe("work", prefetch=3) as subscription:
                for _ in range(3):
                    await receive(subscription)
                await asyncio.sleep(0.7)
        async with transport.subscribe("work", prefetch=3) as subscription:
            for _ in range(3):
                lease = await receive(subscription)
                assert lease.attempt == 3
                await lease.extend(30)
                with pytest.raises(TimeoutError):
                    await receive(subscription, within=QUIET)
                assert sum(count or 0 for count in await depth(transport)) >= 1
                await lease.ack()


async def test_many_suspects_follow_one_another_without_a_pause(url: str) -> None:
    async with opened(url, lease=0.5) as transport:
        await transport.send(*sends(60))
        for _ in range(2):
            async with transport.subscribe("work", prefetch=60) as subscription:
                for _ in range(60):
                    await receive(subscription)
                await asyncio.sleep(0.7)
        async with transport.subscribe("work", prefetch=16) as subscription:
            began = time.monotonic()
            for _ in range(60):
                await (await receive(subscription)).ack()
            assert time.monotonic() - began < 5


async def test_purging_leaves_what_is_held(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(2500), *(Send("work", Message(b"", f"late {n}"), 60.0) for n in range(3)))
        async with transport.subscribe("work", prefetch=2) as subscription:
            held = [await receive(subscription) for _ in range(2)]
            assert await transport.purge("work") == 2501
            assert await depth(transport) == (0, 2, 0)
            await held[0].ack()
        assert await taken(transport) == [held[1].message.id]


async def test_slow_handlers_of_one_queue_get_all_they_have_room_for_beside_many_others(url: str) -> None:
    async with (
        opened(url, *(f"other{number}" for number in range(100)), "work") as transport,
        AsyncExitStack() as stack,
    ):
        for number in range(100):
            subscription = await stack.enter_async_context(transport.subscribe(f"other{number}", prefetch=5))
            waiting = asyncio.ensure_future(subscription.receive())
            stack.callback(waiting.cancel)
        await transport.send(*sends(300))
        async with transport.subscribe("work", prefetch=300) as subscription:
            held = {(await receive(subscription)).message.id for _ in range(300)}
        assert len(held) == 300


async def test_consumers_that_come_and_go_while_messages_flow_lose_and_count_nothing(url: str) -> None:
    total, attempts = 1500, Counter[int]()
    async with opened(url) as sender, opened(url) as transport:

        async def send() -> None:
            for number in range(0, total, 5):
                await sender.send(*sends(5, first=number))
                await asyncio.sleep(0.001)

        sending = asyncio.create_task(send())
        while attempts.total() < total:
            async with transport.subscribe("work", prefetch=20) as subscription:
                for _ in range(min(30, total - attempts.total())):
                    lease = await receive(subscription)
                    attempts[lease.attempt] += 1
                    await lease.ack()
        await sending
        assert attempts == {1: total}
        assert await depth(transport) == (0, 0, 0)


# Delays where the server does not help


async def test_what_is_due_comes_once_however_many_subscribe(old: NATSServer) -> None:
    async with opened(old.url) as transport, opened(old.url) as other:
        await transport.send(*(Send("work", Message(b"", str(number)), 0.3 + number % 3 / 10) for number in range(300)))
        assert await depth(transport) == (0, 0, 300)
        found = Counter[str]()
        async with transport.subscribe("work", prefetch=20) as one, other.subscribe("work", prefetch=20) as two:

            async def work(subscription: Subscription) -> None:
                while True:
                    lease = await receive(subscription, within=50)
                    found[lease.message.id] += 1
                    await lease.ack()

            working = [asyncio.create_task(work(each)) for each in (one, two)]
            await settled_down(transport, "work")
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        assert (len(found), max(found.values())) == (300, 1)
        assert await depth(transport) == (0, 0, 0)


async def test_a_queue_of_an_old_server_that_is_made_anew_is_another_one(old: NATSServer) -> None:
    async with opened(old.url, "again") as transport, opened(old.url, "again") as other:
        await transport.send(*sends(3, "again"))
        async with transport.subscribe("again", prefetch=3) as subscription:
            leases = [await receive(subscription) for _ in range(3)]
            await other.delete("again")
            await other.declare(QueueSpec(name="again"))
            await other.send(*sends(3, "again", first=10))
            async with other.subscribe("again", prefetch=3) as mine:
                new = [await receive(mine) for _ in range(3)]
                with suppress(LeaseLostError, QueueNotFoundError):
                    await leases[0].ack()
                assert await depth(other, "again") == (0, 3, 0)
                for lease in new:
                    await lease.ack()


# What it costs


async def test_one_connection_serves_all_queues_and_waiting_costs_next_to_nothing(server: NATSServer, url: str) -> None:
    names = [f"work{number}" for number in range(30)]
    async with opened(url, *names) as transport:
        before = {each["cid"] for each in server.ask("connz")["connections"]}
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()

            async def wait(name: str) -> None:
                async with transport.subscribe(name, prefetch=5) as subscription:
                    waiting = asyncio.ensure_future(subscription.receive())
                    await over.wait()
                    waiting.cancel()

            for name in names:
                group.create_task(wait(name))
            await asyncio.sleep(0.3)
            assert {each["cid"] for each in server.ask("connz")["connections"]} <= before
            (mine,) = server.ask(f"connz?cid={max(before)}")["connections"]
            used, cpu = mine["in_msgs"], os.times()
            await asyncio.sleep(2.0)
            (mine,) = server.ask(f"connz?cid={max(before)}")["connections"]
            now = os.times()
            assert mine["in_msgs"] - used <= 5
            assert now.user + now.system - cpu.user - cpu.system < 0.2
            over.set()


def test_it_works_on_the_faster_event_loop(url: str) -> None:
    async def main() -> None:
        async with opened(url, "work", "next") as transport:
            await transport.send(*sends(100))
            async with transport.subscribe("work", prefetch=10) as subscription:
                for _ in range(100):
                    lease = await receive(subscription)
                    await lease.ack(Send("next", lease.message))
            assert len(await taken(transport, "next")) == 100

    uvloop.run(main())
