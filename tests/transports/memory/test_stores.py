"""Stores in memory: one for each name, and from one event loop to the next."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from oncue.core.errors import ConfigError, InvalidValueError, LeaseLostError, TransportClosedError
from oncue.core.message import Message, Send, new_id
from oncue.testing import VirtualTimeLoop, run_in_virtual_time
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Transport

Result = TypeVar("Result")


@pytest.fixture
def url() -> str:
    return f"memory:{uuid.uuid4().hex}"


def work(body: str, delay: float = 0.0) -> Send:
    return Send("work", Message(body.encode(), new_id()), delay)


async def open_with_queue(url: str, *, lease: float = 60.0) -> Transport:
    transport = await open_transport(url)
    await transport.declare(QueueSpec(name="work", lease=lease))
    return transport


async def take_all(transport: Transport) -> list[tuple[bytes, int]]:
    found = []
    async with transport.subscribe("work", prefetch=9) as subscription:
        while (await transport.depth("work")).ready:
            lease = await subscription.receive()
            found.append((lease.message.body, lease.attempt))
            await lease.ack()
    return found


def run_without_closing(main: Coroutine[Any, Any, Result]) -> Result:
    """Run in a loop of its own that is closed under whatever is still open in it."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


async def test_one_name_is_one_store_and_no_name_a_new_one_each_time(url: str) -> None:
    first, same = await open_with_queue(url), await open_transport(url.replace("memory:", "Memory://"))
    assert [spec.name for spec in await same.queues()] == ["work"]
    for other in (url + "x", "memory:", "memory:", "memory://"):
        transport = await open_transport(other)
        assert await transport.queues() == []
        await transport.declare(QueueSpec(name="other"))
        await transport.close()
    await first.close()
    await same.close()


@pytest.mark.parametrize("end", ["a/b", "a b", "//a/b", "//user:hunter2@host", "?password=hunter2", "ü"])
async def test_other_names_are_refused_without_their_secrets(end: str) -> None:
    with pytest.raises(InvalidValueError, match="expected 'memory:' or 'memory:NAME'") as caught:
        await open_transport("memory:" + end)
    assert "hunter2" not in str(caught.value)


def test_a_store_outlives_its_connections_and_their_event_loop(url: str) -> None:
    async def fill() -> None:
        transport = await open_with_queue(url)
        await transport.send(work("now"), work("later", 100.0))
        await asyncio.sleep(60)
        await transport.close()

    async def empty() -> list[tuple[bytes, int]]:
        transport = await open_with_queue(url)
        found = await take_all(transport)
        await asyncio.sleep(39)
        assert (await transport.depth("work")).delayed == 1, "time went on between the loops, or ran back"
        await asyncio.sleep(1)
        found += await take_all(transport)
        await transport.close()
        return found

    run_in_virtual_time(fill())
    assert run_in_virtual_time(empty()) == [(b"now", 1), (b"later", 1)]


def test_what_was_held_in_a_loop_that_is_closed_comes_again_in_the_next(url: str) -> None:
    kept: list[Any] = []

    async def go_on() -> list[tuple[bytes, int]]:
        transport = await open_with_queue(url)
        found = await take_all(transport)
        old, subscription, lease, *_ = kept
        for ask in (old.queues, subscription.receive, lease.ack):
            with pytest.raises((TransportClosedError, LeaseLostError)):
                await ask()
        await old.close()
        await transport.close()
        return found

    async def hold() -> None:
        transport = await open_with_queue(url)
        await transport.send(work("held"), work("lapsed"))
        context = transport.subscribe("work", prefetch=3)
        subscription = await context.__aenter__()
        kept.extend([transport, subscription, await subscription.receive(), await subscription.receive(), context])
        await kept[3].extend(1.0)
        await asyncio.sleep(2)

    run_without_closing(hold())
    assert sorted(run_in_virtual_time(go_on())) == [(b"held", 1), (b"lapsed", 2)]


def test_a_store_in_use_refuses_a_second_event_loop(url: str) -> None:
    refused: list[BaseException] = []

    async def open_as_second() -> None:
        transport = await open_transport(url)
        await transport.close()

    def second() -> None:
        try:
            asyncio.run(open_as_second())
        except ConfigError as error:
            refused.append(error)

    def in_a_thread() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    async def first() -> None:
        transport = await open_with_queue(url)
        in_a_thread()
        assert len(refused) == 1, "two loops shared a store"
        await transport.send(work("still here"))
        assert await take_all(transport) == [(b"still here", 1)]
        await transport.close()
        in_a_thread()

    asyncio.run(first())
    assert ["one store serves one event loop" in str(error) for error in refused] == [True]


def test_a_lease_ends_on_time_in_the_next_loop(url: str) -> None:
    async def fill() -> None:
        transport = await open_with_queue(url, lease=10.0)
        await transport.send(work("work"))
        await transport.close()

    async def lose() -> int:
        transport = await open_with_queue(url, lease=10.0)
        async with transport.subscribe("work", prefetch=2) as subscription:
            started = asyncio.get_running_loop().time()
            await subscription.receive()
            again = await subscription.receive()
            assert asyncio.get_running_loop().time() - started == pytest.approx(10.0)
            await again.ack()
        await transport.close()
        return again.attempt

    run_in_virtual_time(fill())
    assert run_in_virtual_time(lose()) == 2


def test_a_lease_that_ran_out_while_the_loop_was_busy_counts_when_its_subscription_is_left() -> None:
    async def lose() -> None:
        transport = await open_with_queue("memory:", lease=10.0)
        await transport.send(work("work"))
        for attempt in (1, 2, 3):
            async with transport.subscribe("work", prefetch=1) as subscription:
                assert (await subscription.receive()).attempt == attempt
                asyncio.get_running_loop()._advance(20.0)  # as a handler does that blocks the loop
        await transport.close()

    run_in_virtual_time(lose())


async def test_one_that_never_has_to_wait_lets_others_have_their_turn() -> None:
    transport = await open_with_queue("memory:")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    async with transport.subscribe("work", prefetch=1) as subscription:
        for _ in range(200):
            await transport.send(work("work"))
            await (await subscription.receive()).ack()
    counting.cancel()
    await asyncio.wait([counting])
    await transport.close()
    assert turns >= 5


async def test_messages_are_handed_to_those_who_wait_in_turn() -> None:
    transport = await open_with_queue("memory:")
    async with (
        transport.subscribe("work", prefetch=9) as first,
        transport.subscribe("work", prefetch=9) as second,
    ):
        waiting = [asyncio.ensure_future(each.receive()) for each in (first, first, second, second)]
        await asyncio.sleep(0)
        for body in "abcd":
            await transport.send(work(body))
        leases = await asyncio.gather(*waiting)
        assert [lease.message.body for lease in leases] == [b"a", b"c", b"b", b"d"]
    await transport.close()


async def test_peek_shows_messages_in_every_state_in_the_order_of_sending() -> None:
    transport = await open_with_queue("memory:")
    await transport.send(work("leased"), work("delayed", 60.0), work("ready"))
    async with transport.subscribe("work", prefetch=1) as subscription:
        await subscription.receive()
        shown = await transport.peek("work", limit=9)
        assert [message.body for message in shown] == [b"leased", b"delayed", b"ready"]
        assert [message.body for message in await transport.peek("work", limit=1)] == [b"leased"]
        assert await transport.peek("work", limit=0) == []
    await transport.close()
