"""What can go wrong between a client and its server: each ends in an error that fits, or passes without a loss."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from brokers.nats_server import NATSServer
from transports.flow import end, flow, hop, kill_and_start
from transports.nats.support import Wire, depth, opened, other_program, prefix_of, settled_down, surely, taken
from transports.words import receive, send_surely, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    LeaseLostError,
    QueueNotFoundError,
    StorageFullError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.nats import open_nats

SECRET = "hunter2"
RIGHTS = """
authorization { users: [
  { user: all, password: hunter2 },
  { user: app, password: hunter2, permissions: {
    publish: ["work.>", "$JS.API.INFO", "$JS.API.STREAM.>", "$JS.API.CONSUMER.>", "$JS.ACK.>"], subscribe: ["_INBOX.app.>"] } },
  { user: reader, password: hunter2, permissions: { publish: ["$JS.API.>"] } }
] }
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NATSServer]:
    """A server that asks who one is."""
    server = NATSServer(tmp_path_factory.mktemp("guarded"), RIGHTS)
    try:
        server.start()
        yield server
    finally:
        server.close()


def as_user(server: NATSServer, user: str, password: str = SECRET) -> str:
    return f"{server.url.replace('//', f'//{user}:{password}@')}?prefix=work&inbox=_INBOX.{user}"


# Who may not


@pytest.mark.parametrize("credentials", ["all:wrong-hunter2@", f"nobody:{SECRET}@", f"{SECRET}@", ""])
async def test_wrong_credentials_are_an_error_without_the_secret(guarded: NATSServer, credentials: str) -> None:
    with pytest.raises(AccessDeniedError, match="denied") as caught:
        await open_nats(guarded.url.replace("//", f"//{credentials}"))
    assert SECRET not in f"{caught.value}{caught.value.__cause__!r}"


async def test_rights_of_the_documented_user_are_enough(guarded: NATSServer) -> None:
    async with opened(as_user(guarded, "app")) as transport:
        await transport.send(*sends(2), Send("work", Message(b"", "later"), 0.05))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await (await receive(subscription)).ack(*sends(1, first=7))
            lease = await receive(subscription)
            await lease.extend(30)
            await lease.nack(delay=0.05)
        assert len(await transport.peek("work", limit=9)) > 0
        assert (await transport.depth("work")).leased == 0
        assert [spec.name for spec in await transport.queues()] == ["work"]
        await transport.purge("work")
        await transport.delete("work")


async def test_what_a_user_may_not_do_is_denied_at_once(guarded: NATSServer) -> None:
    async with opened(as_user(guarded, "all")):
        began = time.monotonic()
        transport = await open_nats(as_user(guarded, "reader"))
        with pytest.raises(AccessDeniedError, match="denied"):
            await transport.send(*sends(1))
        await transport.close()
        with pytest.raises(AccessDeniedError, match="denied"):
            await open_nats(as_user(guarded, "app").replace("_INBOX.app", "_INBOX"))
        assert time.monotonic() - began < 5


async def test_a_password_that_is_changed_is_noticed_and_mended_without_a_restart(tmp_path: Path) -> None:
    users = "authorization {{ user: app, password: {} }}".format
    server = NATSServer(tmp_path, users(SECRET))
    server.start()
    try:
        async with (
            opened(server.url.replace("//", f"//app:{SECRET}@")) as transport,
            transport.subscribe("work", prefetch=1) as subscription,
        ):
            waiting = asyncio.ensure_future(subscription.receive())
            await asyncio.sleep(0.1)
            server.reload(users("another"))
            with pytest.raises((ConnectionLostError, AccessDeniedError)):
                await waiting
            for late in (subscription.receive(), transport.send(*sends(1))):
                with pytest.raises(AccessDeniedError) as caught:
                    await late
                assert SECRET not in str(caught.value)
            server.reload(users(SECRET))
            while True:
                try:
                    await transport.send(*sends(1))
                    break
                except AccessDeniedError:
                    await asyncio.sleep(0.05)
            assert (await receive(subscription)).message.id == "0"
    finally:
        server.close()


async def test_nobody_at_the_address_is_an_error_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionLostError):
        await open_nats(f"nats://user:{SECRET}@127.0.0.1:1,127.0.0.1:2?timeout=1")
    assert time.monotonic() - began < 2


async def test_a_second_host_is_tried(url: str) -> None:
    async with opened(url.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1")) as transport:
        await transport.send(*sends(1))


async def test_a_server_of_something_else_is_an_error_in_time() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ConnectionLostError, match="no word of the protocol"):
        await open_nats(f"nats://127.0.0.1:{port}?timeout=2")
    server.close()


async def test_a_server_without_jetstream_is_said_to_be_one(tmp_path: Path) -> None:
    server = NATSServer(tmp_path, jetstream=None)
    server.start()
    try:
        with pytest.raises(IncompatibleStoreError, match="JetStream"):
            await open_nats(server.url)
    finally:
        server.close()


# No room


async def test_a_full_server_takes_nothing_more_and_what_it_has_can_be_worked_off(tmp_path: Path) -> None:
    server = NATSServer(tmp_path, jetstream="max_file_store: 2MB")
    server.start()
    try:
        async with opened(server.url) as transport:
            stored = 0
            with pytest.raises(StorageFullError):
                while True:
                    await transport.send(Send("work", Message(bytes(100_000), str(stored))))
                    stored += 1
            assert stored > 5
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription)
                with pytest.raises(StorageFullError):
                    await lease.nack()
                await lease.ack()
            await asyncio.sleep(0.1)
            assert len(await taken(transport)) == stored - 1
            await transport.send(*sends(1))
    finally:
        server.close()


async def test_a_server_that_takes_few_messages_at_a_time_gets_all_in_the_end(tmp_path: Path) -> None:
    server = NATSServer(tmp_path, jetstream="max_buffered_msgs: 50")
    server.start()
    try:
        async with opened(server.url) as transport:
            await transport.send(*sends(300))
            assert Counter(await taken(transport)) == dict.fromkeys(map(str, range(300)), 1)
    finally:
        server.close()


# Connections


async def test_a_frozen_server_is_an_error_in_time_and_no_message_is_lost(mortal: NATSServer, mortal_url: str) -> None:
    async with opened(f"{mortal_url}&timeout=1") as transport:
        mortal.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(ConnectionLostError, match="within 1 s"):
                await transport.send(*sends(1))
            with pytest.raises(ConnectionLostError):
                await transport.depth("work")
            assert time.monotonic() - began < 5
        finally:
            mortal.thaw()
        await send_surely(transport, *sends(2))
        assert Counter(await taken(transport)) == {"0": 1, "1": 1}  # the repetition was known as one


async def test_a_connection_that_is_dead_without_a_word_is_noticed(server: NATSServer, url: str) -> None:
    async with (
        Wire(url) as wire,
        opened(url) as sender,
        opened(f"{wire.url}&timeout=1") as transport,
        transport.subscribe("work", prefetch=1) as subscription,
    ):
        dead = max(each["cid"] for each in server.ask("connz")["connections"])
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.1)
        wire.mute = True
        with pytest.raises(ConnectionLostError, match="within 1 s"):
            await transport.depth("work")
        with pytest.raises(ConnectionLostError):
            await waiting
        wire.mute = False
        while server.ask(f"connz?cid={dead}")["connections"]:  # what it sends to the dead comes again after the lease
            await asyncio.sleep(0.02)
        await sender.send(*sends(1))
        assert (await receive(subscription)).message.id == "0"


async def test_a_question_that_was_lost_on_its_way_is_asked_again(url: str) -> None:
    async with Wire(url) as wire, opened(wire.url) as transport:
        wire.mute = True  # as a server that led, and is gone before it answers
        asking = asyncio.ensure_future(transport.depth("work"))
        await asyncio.sleep(0.2)
        wire.mute = False
        assert (await asking).ready == 0


async def test_a_send_that_is_cut_off_is_reported_and_its_repetition_is_stored_once(url: str) -> None:
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
            if not confirmed:
                await send_surely(transport, *sends(1, first=number))
        found = Counter(await taken(observer))
        assert {str(number) for number in range(30)} <= set(found)
        assert max(found.values()) == 1
    assert cut > 8


async def test_leases_outlive_the_connection(url: str) -> None:
    async with Wire(url) as wire, opened(wire.url, "work", "next") as transport:
        await transport.send(*sends(4))
        async with transport.subscribe("work", prefetch=4) as subscription:
            leases = [await receive(subscription) for _ in range(4)]
            wire.cut()
            await send_surely(transport, *sends(1, "next", first=9))
            await leases[0].ack(*sends(1, "next"))
            await leases[1].nack()
            await leases[2].release()
            await leases[3].extend(60)
            found = {(lease := await receive(subscription)).message.id: lease.attempt for _ in range(2)}
            assert found == {"1": 2, "2": 1}
        assert sorted(await taken(transport, "next")) == ["0", "9"]


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_messages_of_a_hundred_publishers_outlive_restarts(mortal: NATSServer, mortal_url: str, how: str) -> None:
    url = f"{mortal_url}&timeout=3"  # a server that was killed may not know, nor answer, what acknowledges its last deliveries
    trouble = mortal.restart if how == "restart" else partial(kill_and_start, mortal)
    async with (
        opened(url) as sender,
        opened(url) as transport,
        transport.subscribe("work", prefetch=50) as subscription,
    ):
        seen = await flow(
            sender, subscription, 10_000, {3_333: trouble, 5_000: trouble}, settle=lambda lease: surely(lease.ack)
        )
    assert len(seen) == 10_000
    # What is seen twice was held, or fetched ahead, when the server went away; nothing is stored twice.
    assert seen.total() - len(seen) <= 2 * (50 + 50)


async def test_cancelled_calls_and_cut_connections_together_lose_nothing(url: str) -> None:
    chance = random.Random(7)
    total = 1000
    async with (
        Wire(url) as wire,
        opened(url, "work", "next", lease=2.0) as observer,
        opened(wire.url, "work", "next", lease=2.0) as transport,
    ):
        await observer.send(*sends(total))

        async with transport.subscribe("work", prefetch=20) as subscription:
            moves = (hop(subscription, "next", lambda: chance.choice((None, None, 0.0, 0.001))) for _ in range(20))
            tasks = [*map(asyncio.create_task, moves)]
            for _ in range(6):
                await asyncio.sleep(chance.uniform(0.02, 0.1))
                wire.cut()
            await settled_down(observer, "work")
            await end(tasks)
        assert set(await taken(observer, "next")) == {str(number) for number in range(total)}


# Streams and consumers


async def test_a_consumer_that_was_deleted_is_made_anew_and_nothing_is_lost(url: str) -> None:
    stream = f"{prefix_of(url)}-work"
    async with (
        opened(url) as transport,
        other_program(url) as js,
        transport.subscribe("work", prefetch=2) as subscription,
    ):
        await transport.send(*sends(1))
        held = await receive(subscription)
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0.1)
        await js.delete_consumer(stream, "oncue")
        again = await waiting
        with pytest.raises(LeaseLostError):
            await held.ack()
        await again.ack()
        await transport.send(*sends(1, first=1))
        await (await receive(subscription)).ack()
        info = await js.consumer_info(stream, "oncue")
        assert (info.config.max_deliver, info.config.max_ack_pending) == (-1, -1)
        assert await depth(transport) == (0, 0, 0)


async def test_a_consumer_that_is_not_there_is_made_anew_whoever_asks_first(url: str) -> None:
    stream = f"{prefix_of(url)}-work"
    async with opened(url) as transport, other_program(url) as js:
        await transport.send(*sends(2))
        await js.delete_consumer(stream, "oncue")
        assert await depth(transport) == (2, 0, 0)
        await js.delete_consumer(stream, "oncue")
        assert sorted(await taken(transport)) == ["0", "1"]


async def test_a_stream_that_was_deleted_is_missed_by_everybody_and_may_be_made_anew(url: str) -> None:
    async with (
        opened(url) as transport,
        other_program(url) as js,
        transport.subscribe("work", prefetch=2) as subscription,
    ):
        await transport.send(*sends(1))
        held = await receive(subscription)
        waiting = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(0.1)
        await js.delete_stream(f"{prefix_of(url)}-work")
        with pytest.raises(QueueNotFoundError):
            await waiting
        with pytest.raises((LeaseLostError, QueueNotFoundError)):
            await held.ack()
        for late in (
            transport.send(*sends(1)),
            transport.send(Send("work", Message(b"", "1"), 5.0)),
            transport.depth("work"),
        ):
            with pytest.raises(QueueNotFoundError):
                await late
        await transport.declare(QueueSpec(name="work"))
        await transport.send(*sends(1, first=5))
        assert (await receive(subscription)).message.id == "5"


async def test_what_was_held_of_a_deleted_queue_settles_nothing_in_the_one_of_its_name(url: str) -> None:
    async with opened(url) as transport, opened(url) as other:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=3) as subscription:  # as many: it asks for nothing more
            leases = [await receive(subscription) for _ in range(3)]
            await other.delete("work")
            await other.declare(QueueSpec(name="work"))
            await other.send(*sends(3, first=10))
            async with other.subscribe("work", prefetch=3) as mine:
                new = [await receive(mine) for _ in range(3)]
                with suppress(LeaseLostError):
                    await leases[0].ack()
                assert await depth(other) == (0, 3, 0)
                for lease in new:
                    await lease.release()
        assert {"10", "11", "12"} <= set(await taken(other))
