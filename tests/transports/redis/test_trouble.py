"""What can go wrong between a client and its server: each ends in an error that fits, or passes without a loss."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from functools import partial

import pytest
from brokers.redis_server import RedisServer
from transports.flow import end, flow, hop, kill_and_start
from transports.redis.support import Wire, depth, ids_in, opened
from transports.words import SOON, receive, send_surely, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    LeaseLostError,
    QueueNotFoundError,
    StorageFullError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.redis import link, open_redis
from oncue.transports.redis import subscription as subscriptions

SECRET = "hunter2"


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at every few seconds is looked at sooner."""
    monkeypatch.setattr(link, "_SILENCE", 0.2)
    monkeypatch.setattr(link, "_LOOK", 0.1)
    monkeypatch.setattr(subscriptions, "_SLOWEST_LOOK", 0.3)


# Who may not


@pytest.mark.parametrize("credentials", [f":{SECRET}@", f"nobody:{SECRET}@", ""])
async def test_wrong_credentials_are_an_error_without_the_secret(server: RedisServer, credentials: str) -> None:
    server.command("CONFIG", "SET", "requirepass", "right")
    with pytest.raises(AccessDeniedError) as caught:
        await open_redis(server.url.replace("//", f"//{credentials}"))
    assert SECRET not in f"{caught.value}{caught.value.__cause__!r}"
    async with opened(server.url.replace("//", "//:right@")) as transport:
        await transport.send(*sends(1))


async def test_a_user_with_rights_to_other_keys_only_is_denied(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "other", "on", f">{SECRET}", "~else*", "&*", "+@all")
    with pytest.raises(AccessDeniedError, match="denied"):
        await open_redis(server.url.replace("//", f"//other:{SECRET}@"))


async def test_a_user_who_may_not_listen_is_told_so_when_receiving(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "deaf", "on", f">{SECRET}", "~*", "resetchannels", "+@all")
    async with (
        opened(server.url.replace("//", f"//deaf:{SECRET}@")) as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        with pytest.raises(AccessDeniedError, match="denied"):
            await subscription.receive()


async def test_rights_of_the_documented_user_are_enough(server: RedisServer) -> None:
    rights = [
        "~{oncue}*",
        "resetchannels",
        "&{oncue}*",
        "-@all",
        "+@read",
        "+@write",
        "+@pubsub",
        "+@scripting",
        "+@connection",
        "+time",
    ]
    assert server.command("ACL", "SETUSER", "oncue", "on", f">{SECRET}", *rights) == b"+OK\r\n"
    async with opened(server.url.replace("//", f"//oncue:{SECRET}@")) as transport:
        await transport.send(*sends(1), Send("work", Message(b"", "later"), 60.0))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await (await receive(subscription)).ack(*sends(1, first=7))
        assert await depth(transport) == (1, 0, 1)
        await transport.purge("work")
        await transport.delete("work")


async def test_credentials_that_are_changed_are_noticed_and_mended_without_a_restart(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "requirepass", "right")
    async with (
        opened(server.url.replace("//", "//:right@")) as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.1)
        await _as(server, "right", "CONFIG SET requirepass changed", "CLIENT KILL TYPE pubsub")
        with pytest.raises(ConnectionLostError):
            await waiting
        with pytest.raises(AccessDeniedError):
            await subscription.receive()
        with pytest.raises(AccessDeniedError):
            await transport.send(*sends(1))
        await _as(server, "changed", "CONFIG SET requirepass right")
        await transport.send(*sends(1))
        assert (await receive(subscription)).attempt == 1


async def _as(server: RedisServer, password: str, *commands: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for command in (f"AUTH {password}", *commands):
        writer.write(command.encode() + b"\r\n")
        assert not (await reader.readline()).startswith(b"-")
    writer.close()
    await writer.wait_closed()


# No room, no scripts, no data


async def test_without_room_nothing_is_stored_and_what_is_stored_can_be_worked_off(server: RedisServer) -> None:
    async with opened(server.url, "work", "next") as transport:
        await transport.send(*sends(6))
        async with (
            transport.subscribe("work", prefetch=6) as subscription,
            transport.subscribe("next", prefetch=1) as idle,
        ):
            waiting = asyncio.ensure_future(idle.receive())
            leases = [await receive(subscription) for _ in range(3)]
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StorageFullError):
                await transport.send(*sends(2, first=100))
            with pytest.raises(StorageFullError):
                await transport.send(*sends(1, "work", 200), *sends(1, "next", 200))
            await leases[0].extend(60)
            await leases[0].nack(delay=60)
            await leases[1].release()
            await leases[2].ack()
            for _ in range(3):
                await (await receive(subscription)).ack()
            hop = await receive(subscription)
            await hop.ack(*sends(1, "next", 300))
            lease = await asyncio.wait_for(waiting, SOON)
            assert lease.message.id == "300"
            await lease.ack()
            assert await depth(transport) == (0, 0, 1)
            assert await ids_in(transport, "next") == []
            server.command("CONFIG", "SET", "maxmemory", "0")
            await transport.send(*sends(1, first=400))
            assert (await receive(subscription)).message.id == "400"


async def test_scripts_that_were_flushed_are_given_again(server: RedisServer) -> None:
    async with opened(server.url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        for number in range(3):
            server.command("SCRIPT", "FLUSH")
            await transport.send(*sends(1, first=number))
            server.command("SCRIPT", "FLUSH")
            lease = await receive(subscription)
            server.command("SCRIPT", "FLUSH")
            await lease.ack()
            server.command("SCRIPT", "FLUSH")
            assert await depth(transport) == (0, 0, 0)


@pytest.mark.usefixtures("quick_looks")
async def test_a_consumer_is_told_that_all_data_are_gone_and_goes_on_with_a_new_queue(server: RedisServer) -> None:
    async with opened(server.url) as transport, transport.subscribe("work", prefetch=2) as subscription:
        await transport.send(*sends(1))
        held = await receive(subscription)
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.1)
        server.command("FLUSHALL")
        with pytest.raises(QueueNotFoundError):
            await asyncio.wait_for(waiting, SOON)
        with pytest.raises(LeaseLostError):
            await held.ack()
        with pytest.raises(QueueNotFoundError):
            await transport.send(*sends(1))
        await transport.declare(QueueSpec(name="work"))
        await transport.send(*sends(1, first=7))
        assert (await receive(subscription)).message.id == "7"


async def test_a_server_that_became_a_replica_is_of_no_use_until_it_is_none(server: RedisServer) -> None:
    async with opened(server.url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        waiting = asyncio.ensure_future(receive(subscription))
        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ConnectionLostError, match="READONLY"):
            await transport.send(*sends(1))
        server.command("REPLICAOF", "NO", "ONE")
        await send_surely(transport, *sends(1))
        assert (await waiting).message.id == "0"


# Connections


async def test_a_frozen_server_is_an_error_in_time_and_no_message_is_lost(server: RedisServer) -> None:
    async with opened(f"{server.url}?timeout=1") as transport:
        server.freeze()
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match="no answer within 1 s"):
            await transport.send(*sends(1))
        assert time.monotonic() - began < 4
        with pytest.raises(ConnectionLostError):
            await transport.depth("work")
        server.thaw()
        await send_surely(transport, *sends(1, first=1))
        assert Counter(await ids_in(transport)) <= Counter(["0", "1"])
        assert "1" in await ids_in(transport)


@pytest.mark.usefixtures("quick_looks")
async def test_a_connection_that_is_dead_without_a_word_is_noticed(server: RedisServer) -> None:
    async with (
        Wire(server.port) as proxy,
        opened(server.url) as sender,
        opened(f"{proxy.url}?timeout=1") as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0.1)
        proxy.mute = True
        await sender.send(*sends(1))
        await asyncio.sleep(0.5)
        proxy.mute = False
        assert (await waiting).message.id == "0"


async def test_a_send_that_is_cut_off_is_reported_and_its_repetition_has_the_same_id(server: RedisServer) -> None:
    cut = 0
    async with Wire(server.port) as proxy, opened(server.url) as observer, opened(proxy.url) as transport:
        for number in range(40):
            if number % 2:
                proxy.requests = number * 12
            else:
                proxy.answers = number // 4
            confirmed = False
            try:
                await transport.send(*sends(1, first=number))
                confirmed = True
            except ConnectionLostError:
                cut += 1
            found = Counter(await ids_in(observer))[str(number)]
            assert found == 1 if confirmed else found <= 1
            proxy.requests = proxy.answers = None
            await send_surely(transport, *sends(1, first=number))
        assert set(await ids_in(observer)) == {str(number) for number in range(40)}
    assert cut > 10


async def test_what_was_claimed_when_the_connection_broke_comes_again_at_once_and_was_no_attempt(
    server: RedisServer,
) -> None:
    async with (
        Wire(server.port) as proxy,
        opened(server.url) as observer,
        opened(proxy.url) as transport,
        transport.subscribe("work", prefetch=5) as subscription,
    ):
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0.1)
        proxy.answers = 100  # enough to be told that there are messages, and too little to get them
        await observer.send(*sends(5))
        leases = [await waiting, *[await receive(subscription) for _ in range(4)]]
        assert proxy.answers is None, "nothing was cut"
        assert sorted(lease.message.id for lease in leases) == list("01234")
        assert {lease.attempt for lease in leases} == {1}
        assert await depth(observer) == (0, 5, 0)


async def test_leases_outlive_the_connection_that_they_came_by(server: RedisServer) -> None:
    async with Wire(server.port) as proxy, opened(proxy.url, "work", "next") as transport:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=3) as subscription:
            leases = [await receive(subscription) for _ in range(3)]
            proxy.cut()
            await asyncio.sleep(0.05)
            await send_surely(transport, *sends(1, "next"))
            await leases[0].ack()
            await leases[1].extend(60)
            await leases[2].nack()
            assert await depth(transport) == (1, 1, 0)


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_ten_thousand_messages_of_a_hundred_publishers_outlive_restarts(
    careful_server: RedisServer, how: str
) -> None:
    trouble = careful_server.restart if how == "restart" else partial(kill_and_start, careful_server)
    url = careful_server.url
    async with (
        opened(url, lease=2.0) as sender,
        opened(url, lease=2.0) as transport,
        transport.subscribe("work", prefetch=50) as subscription,
    ):
        seen = await flow(sender, subscription, 10_000, {3_333: trouble, 5_000: trouble})
    assert len(seen) == 10_000
    # What is seen twice was under way when the server went away: sent twice, or acknowledged without an answer.
    assert seen.total() - len(seen) <= 2 * (100 + 50 + 50) * 2


async def test_cancelled_calls_and_cut_connections_together_lose_nothing_and_double_nothing(
    server: RedisServer,
) -> None:
    chance = random.Random(7)
    total = 1500
    async with (
        Wire(server.port) as proxy,
        opened(server.url, "work", "next", lease=1.0) as observer,
        opened(proxy.url, "work", "next", lease=1.0) as transport,
    ):
        await observer.send(*sends(total))

        async def cut() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0.0, 0.1))
                proxy.cut()

        async with transport.subscribe("work", prefetch=20) as subscription:
            moves = (hop(subscription, "next", lambda: chance.choice((None, 0.0, 0.001, 0.003))) for _ in range(20))
            tasks = [asyncio.create_task(cut()), *map(asyncio.create_task, moves)]
            async with asyncio.timeout(40):
                while await depth(observer) != (0, 0, 0):
                    await asyncio.sleep(0.05)
            await end(tasks)
        assert Counter(await ids_in(observer, "next")) == Counter(str(number) for number in range(total))


async def test_opening_that_is_cancelled_waits_for_nobody(server: RedisServer) -> None:
    server.freeze()
    opening = asyncio.create_task(open_redis(server.url))
    await asyncio.sleep(0.1)  # it has sent its greeting, or is about to
    opening.cancel()
    done, _ = await asyncio.wait([opening], timeout=2)
    assert done and opening.cancelled()
