"""What working costs: connections, commands, wakings, and what an autoscaler reads meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

import pytest
from brokers.redis_server import RedisServer
from transports.redis.support import calls, depth, opened
from transports.words import SOON, receive, sends

from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec, Subscription
from oncue.transports.redis import subscription as subscriptions

# As KEDA's scaler of the type `redis` asks for the length of what it is given as `listName`.
KEDA = """
local listName = KEYS[1]
local listType = redis.call('type', listName).ok
local cmd = { zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen' }
return redis.call(cmd[listType], listName)
"""


def _pretend_to_wait(server: RedisServer, since: float, *names: str) -> None:
    for name in names:
        server.command("ZADD", "{oncue}:work:h", f"{since * 1e6:.0f}", name)


def connections(server: RedisServer) -> int:
    return server.command("CLIENT", "LIST").count(b"name=oncue")


async def test_what_keda_reads_is_what_waits_and_what_is_worked_on(server: RedisServer) -> None:
    def read(key: str) -> int:
        return int(server.command("EVAL", KEDA, 1, f"{{oncue}}:work:{key}").strip(b":\r\n"))

    async with opened(server.url) as transport:
        assert (read("m"), read("d")) == (0, 0)
        await transport.send(*sends(5), Send("work", Message(b"", "later"), 3600.0))
        assert (read("m"), read("d")) == (5, 1)
        async with transport.subscribe("work", prefetch=3) as subscription:
            old, *young = [await receive(subscription) for _ in range(3)]
            assert (read("m"), read("d")) == (5, 1)
            for lease in young:
                await lease.ack()
            await old.nack(delay=3600)
            assert (read("m"), read("d")) == (2, 2)
        assert await depth(transport) == (2, 0, 2)
        await transport.delete("work")
        assert (read("m"), read("d")) == (0, 0)


async def test_a_deleted_queue_leaves_no_key_behind(server: RedisServer) -> None:
    async with opened(server.url) as transport:
        await transport.declare(QueueSpec(name="odd", fifo=True, retention=60.0))
        await transport.send(*(Send("odd", Message(b"", str(number), key="k"), number % 2) for number in range(9)))
        async with transport.subscribe("odd", prefetch=2) as subscription:
            await receive(subscription)
            await transport.delete("odd")
            await transport.delete("work")
    assert server.command("DBSIZE") == b":0\r\n"


async def test_a_hundred_consumers_of_a_hundred_queues_share_one_connection(server: RedisServer) -> None:
    names = [f"queue-{number}" for number in range(100)]
    async with opened(server.url, *names) as transport, AsyncExitStack() as stack:
        waiting = []
        for name in names:
            subscription = await stack.enter_async_context(transport.subscribe(name, prefetch=4))
            waiting.append(asyncio.ensure_future(receive(subscription)))
        await asyncio.sleep(0.1)
        assert connections(server) == 1
        await transport.send(*(Send(name, Message(b"", name)) for name in names))
        assert [(await task).message.id for task in waiting] == names
        assert connections(server) == 1
    assert connections(server) == 0


async def test_consumers_that_wait_ask_less_than_once_a_second(server: RedisServer) -> None:
    async with opened(server.url) as transport, AsyncExitStack() as stack:
        waiting = []
        for _ in range(5):
            subscription = await stack.enter_async_context(transport.subscribe("work", prefetch=4))
            waiting.append(asyncio.ensure_future(subscription.receive()))
        await asyncio.sleep(0.2)
        before = _commands(server)
        await asyncio.sleep(5)
        asked = _commands(server) - before - 1
        for task in waiting:
            task.cancel()
    assert asked < 5, f"{asked} commands in 5 s of 5 consumers"


def _commands(server: RedisServer) -> int:
    text = server.command("INFO", "stats").decode()
    return int(text.split("total_commands_processed:")[1].split()[0])


async def test_one_message_wakes_one_of_many_consumers_at_once(server: RedisServer) -> None:
    count = 20
    async with opened(server.url) as transport, AsyncExitStack() as stack:
        subscriptions = []
        for _ in range(count):
            other = await stack.enter_async_context(opened(server.url))
            subscriptions.append(await stack.enter_async_context(other.subscribe("work", prefetch=1)))
        waiting = {asyncio.ensure_future(receive(each, within=30)): each for each in subscriptions}
        await asyncio.sleep(0.3)
        before, delays = calls(server, "evalsha"), []
        for number in range(50):
            sent = time.monotonic()
            await transport.send(*sends(1, first=number))
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            delays.append(time.monotonic() - sent)
            (task,) = done
            await task.result().ack()
            subscription = waiting.pop(task)
            waiting[asyncio.ensure_future(receive(subscription, within=30))] = subscription
        used = calls(server, "evalsha") - before
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert statistics.median(delays) < 0.08, "nobody was told: they come to look after a tenth of a second"
    # Sending, waking, settling with the next claim; and now and then all the others have a look.
    assert used < 50 * 4 + 3 * count, f"{used} calls for 50 messages"


async def test_what_a_dead_consumer_was_told_of_is_taken_by_another(server: RedisServer) -> None:
    async with opened(server.url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0.1)
        _pretend_to_wait(server, time.time() + 1.0, *(f"dead{number}" for number in range(200)))
        sent = time.monotonic()
        await transport.send(*sends(1))
        assert (await waiting).message.id == "0"
        assert time.monotonic() - sent < 1.0


async def test_consumers_that_have_not_been_heard_of_for_long_are_told_of_nothing(server: RedisServer) -> None:
    async with opened(server.url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        _pretend_to_wait(server, time.time() - 60.0, "dead")
        await transport.send(*sends(1))
        await (await receive(subscription)).ack()
        assert b"dead" not in server.command("ZRANGE", "{oncue}:work:h", 0, -1)


async def test_a_consumer_learns_of_leases_that_others_take_while_it_waits(server: RedisServer) -> None:
    async with (
        opened(server.url, lease=1.0) as transport,
        opened(server.url, lease=1.0) as other,
        transport.subscribe("work", prefetch=1) as dying,
        other.subscribe("work", prefetch=1) as watching,
    ):
        waiting = asyncio.ensure_future(receive(watching))
        await asyncio.sleep(0.1)
        server.command("DEL", "{oncue}:work:h")  # so that nobody is told by name
        _pretend_to_wait(server, time.time(), "nobody")
        await transport.send(*sends(1))
        lease = await receive(dying)
        taken = time.monotonic()
        again = await waiting
        assert (again.message.id, again.attempt) == (lease.message.id, 2)
        assert time.monotonic() - taken < 1.5


async def test_what_lies_fetched_for_too_long_goes_back_uncounted(server: RedisServer) -> None:
    async with opened(server.url, lease=1.0) as transport, opened(server.url, lease=1.0) as other:
        await transport.send(*sends(4))
        async with transport.subscribe("work", prefetch=4) as subscription:
            await (await receive(subscription)).ack()
            assert await depth(other) == (0, 3, 0)
            async with other.subscribe("work", prefetch=4) as free:
                leases = [await receive(free, within=1.0) for _ in range(3)]
            assert {lease.attempt for lease in leases} == {1}


async def test_large_bodies_do_not_break_the_connection(server: RedisServer) -> None:
    body = bytes(range(256)) * (4 * 1024 * 12)  # 12 MiB
    async with opened(server.url) as transport:
        for number in range(6):
            await transport.send(Send("work", Message(body, str(number))))
        await transport.send(*sends(100, first=6))
        assert len(await transport.peek("work", limit=7)) == 7
        async with transport.subscribe("work", prefetch=200) as subscription:
            for number in range(106):
                lease = await receive(subscription)
                assert lease.message.id == str(number)
                assert lease.message.body == (body if number < 6 else b"body")
                assert lease.attempt == 1
                await lease.ack()
    assert connections(server) == 0


async def test_more_messages_than_one_call_takes_are_stored_and_come_in_order(server: RedisServer) -> None:
    async with opened(server.url) as transport:
        await transport.send(*sends(25_000))
        assert await depth(transport) == (25_000, 0, 0)
        async with transport.subscribe("work", prefetch=9_000) as subscription:
            leases = [await receive(subscription) for _ in range(9_000)]
            assert [lease.message.id for lease in leases] == [str(number) for number in range(9_000)]
            await asyncio.gather(*(lease.ack() for lease in leases[:4_500]))
        assert await depth(transport) == (20_500, 0, 0)
        assert await transport.purge("work") == 20_500


@pytest.mark.parametrize("fifo", [False, True])
async def test_an_extension_beside_an_acknowledgement_leaves_nothing_behind(server: RedisServer, fifo: bool) -> None:
    async with opened(server.url) as transport:
        await transport.declare(QueueSpec(name="beside", fifo=fifo))
        await transport.send(*sends(20, "beside"))
        async with transport.subscribe("beside", prefetch=20) as subscription:
            for _ in range(20):
                lease = await receive(subscription)
                await asyncio.gather(lease.extend(0.1), lease.ack(), return_exceptions=True)
        await asyncio.sleep(0.2)
        assert await depth(transport, "beside") == (0, 0, 0)
    assert server.command("KEYS", "{oncue}:beside:[^h]").count(b"beside:") == 0


async def test_a_shorter_extension_is_heard_of_by_those_who_wait(server: RedisServer) -> None:
    async with opened(server.url) as transport, opened(server.url) as other:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription, other.subscribe("work", prefetch=1) as free:
            lease = await receive(subscription)
            waiting = asyncio.ensure_future(receive(free))
            await asyncio.sleep(0.1)
            await lease.extend(0.5)
            assert (await asyncio.wait_for(waiting, 1.5)).attempt == 2


async def test_a_subscription_hands_its_turn_on_when_nobody_asks_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_SLOWEST_LOOK", 30.0)
    async with (
        opened(server.url) as transport,
        opened(server.url) as other,
        transport.subscribe("work", prefetch=1) as idle,
        other.subscribe("work", prefetch=1) as asking,
    ):
        for number in range(10):
            await _ask_and_give_up(idle)
            waiting = asyncio.ensure_future(receive(asking))
            await asyncio.sleep(0.02)
            await transport.send(*sends(1, first=number))
            lease = await asyncio.wait_for(waiting, SOON)
            await lease.ack()


async def _ask_and_give_up(subscription: Subscription) -> None:
    asking = asyncio.ensure_future(subscription.receive())
    await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.wait([asking])


async def test_of_many_full_queues_only_so_much_is_fetched_as_is_worked_on_soon(server: RedisServer) -> None:
    queues, jobs, hands = [f"work{number}" for number in range(20)], 800, 200
    count = "local n = 0 for _, key in ipairs(KEYS) do n = n + redis.call('ZCARD', key) end return n"
    keys = [f"{{oncue}}:{queue}:l" for queue in queues]
    leased, order = [], []

    async def work(subscription: Subscription, queue: str) -> None:
        for _ in range(jobs // hands):
            lease = await receive(subscription)
            order.append(queue)
            if len(order) % 100 == 0:
                leased.append(int(server.command("EVAL", count, len(keys), *keys).strip(b":\r\n")))
            await lease.ack()

    async with opened(server.url, *queues) as transport, AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for queue in queues:
            await transport.send(*(Send(queue, Message(b"", str(number))) for number in range(jobs)))
        subscriptions = [
            await stack.enter_async_context(transport.subscribe(queue, prefetch=hands)) for queue in queues
        ]
        for queue, subscription in zip(queues, subscriptions, strict=True):
            for _ in range(hands):
                group.create_task(work(subscription, queue))
    assert max(leased) < 2000, leased  # of the 4000 that there is room for
    assert {*order[: len(order) // 2]} == {*queues}  # each has had its turn before any has had two
