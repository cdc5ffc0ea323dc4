"""What can go wrong between a client and its server: each ends in an error that fits, or passes without a loss."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from brokers.rabbitmq_server import RabbitMQServer, path_of
from transports.flow import end, flow, hop, kill_and_start
from transports.rabbitmq.support import Wire, opened, settled_down, taken
from transports.words import SOON, receive, send_surely, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    LeaseLostError,
    MessageTooLargeError,
    StorageFullError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.rabbitmq import open_rabbitmq

SECRET = "hunter2"
RIGHTS = r"^(oncue\..*|asya|asya-.*|work|amq\.default)$"


def vhost_of(url: str) -> str:
    return url.rpartition("/")[2]


def as_user(url: str, name: str, password: str = SECRET) -> str:
    return url.replace("guest:guest@", f"{name}:{password}@")


def make_user(server: RabbitMQServer, url: str, name: str, **rights: str) -> None:
    server.request("PUT", f"users/{name}", {"password": SECRET, "tags": ""})
    all_of = {"configure": RIGHTS, "write": RIGHTS, "read": RIGHTS, **rights}
    server.request("PUT", f"permissions/{path_of(vhost_of(url), name)}", all_of)


@contextmanager
def settings(server: RabbitMQServer, **values: int) -> Iterator[None]:
    """Settings of the running server, for the channels that are opened meanwhile."""
    names = ",".join(values)
    pairs = ",".join(f"{{{name},{value}}}" for name, value in values.items())
    change = "begin Old = application:get_env(rabbit, Name), application:set_env(rabbit, Name, Value), Old end"
    before = server.control("eval", f"[{change} || {{Name, Value}} <- [{pairs}]].").strip()
    try:
        yield
    finally:
        back = (
            "case Old of {ok, V} -> application:set_env(rabbit, Name, V); _ -> application:unset_env(rabbit, Name) end"
        )
        server.control("eval", f"[{back} || {{Name, Old}} <- lists:zip([{names}], {before})].")


# Who may not


@pytest.mark.parametrize("credentials", [f"guest:{SECRET}@", f"nobody:{SECRET}@", f":{SECRET}@"])
async def test_wrong_credentials_are_an_error_without_the_secret(url: str, credentials: str) -> None:
    if credentials.startswith(":"):
        credentials = f"%20{credentials}"
    with pytest.raises(AccessDeniedError, match="denied") as caught:
        await open_rabbitmq(url.replace("guest:guest@", credentials))
    assert SECRET not in f"{caught.value}{caught.value.__cause__!r}"


async def test_a_virtual_host_that_is_not_there_is_an_error(url: str) -> None:
    with pytest.raises(AccessDeniedError, match="nowhere"):
        await open_rabbitmq(url.replace(vhost_of(url), "nowhere"))


async def test_nobody_at_the_address_is_an_error_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionLostError):
        await open_rabbitmq(f"amqp://guest:{SECRET}@127.0.0.1:1,127.0.0.1:2/?timeout=1")
    assert time.monotonic() - began < 2


async def test_a_second_host_is_tried(url: str) -> None:
    async with opened(url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1")) as transport:
        await transport.send(*sends(1))


async def test_a_user_without_rights_to_the_queue_is_denied(server: RabbitMQServer, url: str) -> None:
    make_user(server, url, "other")
    async with opened(as_user(url, "other")) as transport:
        with pytest.raises(AccessDeniedError, match="denied"):
            await transport.declare(QueueSpec(name="forbidden"))
        await transport.send(*sends(1))


async def test_rights_of_the_documented_user_are_enough(server: RabbitMQServer, url: str) -> None:
    make_user(server, url, "enough")
    async with opened(as_user(url, "enough")) as transport:
        await transport.send(*sends(2), Send("work", Message(b"", "later"), 0.05))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await (await receive(subscription)).ack(*sends(1, first=7))
            await (await receive(subscription)).nack(delay=0.05)
        assert len(await transport.peek("work", limit=9)) > 0
        await transport.purge("work")
        await transport.delete("work")


async def test_credentials_that_are_changed_are_noticed_and_mended_without_a_restart(
    server: RabbitMQServer, url: str
) -> None:
    make_user(server, url, "changing")
    async with (
        opened(as_user(url, "changing")) as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(subscription.receive())
        await transport.send(*sends(0), *sends(1))
        await (await waiting).ack()
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.1)
        server.request("PUT", "users/changing", {"password": "changed", "tags": ""})
        server.control("close_all_user_connections", "changing", "rotated")
        with pytest.raises(ConnectionLostError):
            await waiting
        with pytest.raises(AccessDeniedError):
            await subscription.receive()
        with pytest.raises(AccessDeniedError):
            await transport.send(*sends(1))
        server.request("PUT", "users/changing", {"password": SECRET, "tags": ""})
        await transport.send(*sends(1))
        assert (await receive(subscription)).attempt == 1


# No room, no patience


async def test_a_server_short_of_memory_takes_nothing_more_and_what_it_has_can_be_worked_off(
    server: RabbitMQServer, url: str
) -> None:
    async with opened(f"{url}?timeout=1") as transport, opened(url) as observer:
        await transport.send(*sends(6))
        async with transport.subscribe("work", prefetch=6) as subscription:
            leases = [await receive(subscription) for _ in range(4)]
            try:
                await asyncio.to_thread(server.alarm, on=True)
                began = time.monotonic()
                with pytest.raises(ConnectionLostError, match="memory"):
                    await transport.send(*sends(1, first=100))
                with pytest.raises(StorageFullError, match="memory"):
                    await transport.send(*sends(1, first=101))
                with pytest.raises(ConnectionLostError):
                    await leases[0].nack()
                assert time.monotonic() - began < 6
                await leases[0].extend(60)
                for lease in leases:
                    await lease.ack()
                await (await receive(subscription)).ack()
                assert (await observer.depth("work")).ready == 0
            finally:
                await asyncio.to_thread(server.alarm, on=False)
            await send_surely(transport, *sends(1, first=200))
            last = await receive(subscription)
            await last.ack()
            while last.message.id != "200":
                last = await receive(subscription)
                await last.ack()
        assert set(await taken(observer)) <= {"5", "100"}


async def test_a_subscription_can_be_left_though_nothing_can_be_published(server: RabbitMQServer, url: str) -> None:
    async with opened(f"{url}?timeout=1") as transport, opened(url) as observer:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=3) as subscription:
            await receive(subscription)
            await asyncio.to_thread(server.alarm, on=True)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        await asyncio.to_thread(server.alarm, on=False)
        assert set(await taken(observer)) == {"0", "1", "2"}


async def test_a_message_that_this_server_finds_too_large_is_refused_and_costs_no_other(
    server: RabbitMQServer, url: str
) -> None:
    with settings(server, max_message_size=100_000):
        async with opened(url) as transport:
            with pytest.raises(MessageTooLargeError):
                await transport.send(Send("work", Message(bytes(100_001), "large")))
            await transport.send(*sends(1))
            assert await taken(transport) == ["0"]


async def test_a_message_that_is_held_for_longer_than_the_server_allows_is_lost_and_comes_again(
    server: RabbitMQServer, url: str
) -> None:
    with settings(server, consumer_timeout=1000, channel_tick_interval=200):
        async with opened(url) as transport, transport.subscribe("work", prefetch=2) as subscription:
            await transport.send(*sends(1))
            held = await receive(subscription)
            with pytest.raises(ConnectionLostError, match="timed out"):
                await asyncio.wait_for(subscription.receive(), SOON)
            with pytest.raises(LeaseLostError):
                await held.ack()
            again = await receive(subscription)
            assert (again.message.id, again.attempt) == ("0", 2)
            await again.ack()


async def test_a_lease_ends_before_the_server_takes_the_message_away(server: RabbitMQServer, url: str) -> None:
    with settings(server, consumer_timeout=2000, channel_tick_interval=200):
        async with opened(f"{url}?consumer_timeout=2", lease=1.0) as transport:
            await transport.send(*sends(2))
            async with transport.subscribe("work", prefetch=2) as subscription:
                first, second = await receive(subscription), await receive(subscription)
                lost = 0.0
                began = time.monotonic()
                while not lost:
                    await asyncio.sleep(0.1)
                    await second.extend(1.0) if time.monotonic() - began < 0.9 else None
                    try:
                        await first.extend(1.0)
                    except LeaseLostError:
                        lost = time.monotonic() - began
                assert 1.5 < lost < 2.0
                attempts = [(await receive(subscription)).attempt for _ in range(2)]
                assert attempts == [2, 2]


# Connections


async def test_a_frozen_server_is_an_error_in_time_and_no_message_is_lost(mortal: RabbitMQServer) -> None:
    async with opened(f"{mortal.url}?timeout=1", "frozen") as transport:
        mortal.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(ConnectionLostError, match="no answer within 1 s"):
                await transport.send(*sends(1, "frozen"))
            with pytest.raises(ConnectionLostError):
                await transport.depth("frozen")
            assert time.monotonic() - began < 4
        finally:
            mortal.thaw()
        await send_surely(transport, *sends(1, "frozen", first=1))
        found = Counter(await taken(transport, "frozen"))
        assert found["1"] >= 1
        assert set(found) <= {"0", "1"}


async def test_a_connection_that_is_dead_without_a_word_is_noticed(url: str) -> None:
    async with (
        Wire(url) as wire,
        opened(url) as sender,
        opened(f"{wire.url}?heartbeat=1") as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0.1)
        wire.mute = True
        await sender.send(*sends(1))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await asyncio.sleep(2.5)
        wire.mute = False
        wire.cut()
        assert (await waiting).message.id == "0"


async def test_a_send_that_is_cut_off_is_reported_and_its_repetition_has_the_same_id(url: str) -> None:
    cut = 0
    async with Wire(url) as wire, opened(url) as observer, opened(wire.url) as transport:
        for number in range(30):
            await send_surely(transport, *sends(1, first=1000 + number))
            before = (await observer.depth("work")).ready or 0
            if number % 2:
                wire.requests = number * 6
            else:
                wire.answers = number // 3
            confirmed = False
            try:
                await transport.send(*sends(1, first=number))
                confirmed = True
            except ConnectionLostError:
                cut += 1
            wire.requests = wire.answers = None
            wire.cut()
            stored = ((await observer.depth("work")).ready or 0) - before
            assert stored == 1 if confirmed else stored <= 1
            await send_surely(transport, *sends(1, first=number))
        found = Counter(await taken(observer))
        assert {str(number) for number in range(30)} <= set(found)
        assert max(found.values()) <= 2
    assert cut > 8


async def test_leases_are_lost_with_the_connection_and_their_messages_come_again(url: str) -> None:
    async with Wire(url) as wire, opened(wire.url, "work", "next") as transport:
        await transport.send(*sends(4))
        async with transport.subscribe("work", prefetch=3) as subscription:
            leases = [await receive(subscription) for _ in range(2)]
            wire.cut()
            await send_surely(transport, *sends(1, "next"))
            for settle in (leases[0].ack(), leases[1].nack()):
                with pytest.raises(LeaseLostError):
                    await settle
            found = {}
            for _ in range(4):
                lease = await receive(subscription)
                found[lease.message.id] = lease.attempt
                await lease.ack()
            assert found.keys() == {"0", "1", "2", "3"}
            assert (found["0"], found["1"], found["3"]) == (2, 2, 1)


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_messages_of_a_hundred_publishers_outlive_restarts(mortal: RabbitMQServer, how: str) -> None:
    trouble = mortal.restart if how == "restart" else partial(kill_and_start, mortal)
    queue = f"flow-{how}"
    async with opened(mortal.url, queue) as sender, opened(mortal.url, queue) as transport:
        if how == "kill":
            await asyncio.sleep(1.0)  # for as long the server keeps a new quorum queue's place in its memory alone
        async with transport.subscribe(queue, prefetch=50) as subscription:
            seen = await flow(sender, subscription, 4000, {1333: trouble, 2000: trouble}, queue=queue)
    assert len(seen) == 4000
    # What is seen twice was under way when the server went away: sent twice, or acknowledged without an answer.
    assert seen.total() - len(seen) <= 2 * (100 + 50 + 50) * 2


async def test_cancelled_calls_and_cut_connections_together_lose_nothing(url: str) -> None:
    chance = random.Random(7)
    total = 1000
    async with (
        Wire(url) as wire,
        opened(url, "work", "next", lease=5.0) as observer,
        opened(wire.url, "work", "next", lease=5.0) as transport,
    ):
        await observer.send(*sends(total))

        async with transport.subscribe("work", prefetch=20) as subscription:
            moves = (hop(subscription, "next", lambda: chance.choice((None, None, 0.0, 0.001))) for _ in range(20))
            tasks = [*map(asyncio.create_task, moves)]
            for _ in range(6):
                await asyncio.sleep(chance.uniform(0.02, 0.1))
                wire.cut()
            await settled_down(observer, "work")
            await asyncio.sleep(0.3)
            await end(tasks)
        left = [*await taken(observer), *await taken(observer, "next")]
        assert set(left) == {str(number) for number in range(total)}
