"""A pump whose handler comes to work on more or fewer messages at the same time than before."""

from __future__ import annotations

import asyncio

import pytest
from pumping import Work, in_virtual_time, numbered, place

from oncue.core.errors import ConnectionLostError
from oncue.events import BrokerBack, MessageDone, MessageStarted, PumpStarted

AHEAD = 128


async def settled() -> None:
    """Let everything happen that is going to without anybody's doing."""
    await asyncio.sleep(1.0)


@in_virtual_time
@pytest.mark.parametrize("more", [3, AHEAD + 50])
async def test_more_run_at_once_when_it_grows(more: int) -> None:
    world = await place(*numbered(more + 1))
    work = Work(held=True)
    pump = world.pump(work)
    async with world.running(pump):
        await work.began()
        pump.resize(more)
        await work.began(more)
        await settled()
        assert len(work.running) == work.peak == more
        work.gate.set()
        await world.heard.wait(MessageDone, more + 1)


@in_virtual_time
async def test_fewer_run_at_once_when_it_shrinks_and_those_that_run_are_left_alone() -> None:
    world = await place(*numbered(12))
    work = Work(1.0)
    pump = world.pump(work, concurrency=4)
    async with world.running(pump):
        await work.began(4)
        pump.resize(2)
        assert len(work.running) == 4
        await world.heard.wait(MessageDone, 4)
        work.peak = 0
        await world.heard.wait(MessageDone, 12)
    assert work.peak == 2
    assert work.cancelled == []
    assert sorted(work.calls) == sorted((id, 1) for id in numbered(12))


@in_virtual_time
async def test_what_was_fetched_for_those_that_run_no_more_is_for_others() -> None:
    world = await place()
    work = Work(held=True)
    pump = world.pump(work, concurrency=8)
    async with world.running(pump):
        await world.heard.wait(PumpStarted)
        pump.resize(1)
        await world.send(*numbered(5))
        await work.began()
        await settled()
        assert await world.depth() == (4, 1, 0)
        pump.resize(3)
        await work.began(3)
        assert await world.depth() == (2, 3, 0)


@in_virtual_time
async def test_while_quick_messages_are_fetched_ahead_it_grows_and_shrinks_as_well() -> None:
    world = await place(*numbered(2000))
    work = Work()
    pump = world.pump(work, concurrency=2)
    async with world.running(pump):
        await world.heard.wait(MessageDone, 300)
        pump.resize(5)
        await world.heard.wait(MessageDone, 600)
        pump.resize(1)
        await world.heard.wait(MessageDone, 2000)
    prefetches = world.trouble.prefetches
    assert prefetches[:4] == [2, 2 + AHEAD, 5 + AHEAD, 1 + AHEAD]


@in_virtual_time
async def test_before_the_queue_can_be_reached_and_while_it_cannot_the_last_word_counts() -> None:
    world = await place(*numbered(9))
    work = Work(held=True)
    pump = world.pump(work)
    pump.resize(2)
    world.trouble.begin(ConnectionLostError("away"))
    async with world.running(pump):
        await settled()
        pump.resize(3)
        world.trouble.end()
        await work.began(3)
        world.trouble.begin(ConnectionLostError("away"))
        pump.resize(4)
        await settled()
        world.trouble.end()
        await world.heard.wait(BrokerBack, 2)
        await work.began(4)
        await settled()
        assert len(work.running) == 4


@in_virtual_time
async def test_a_pump_that_ends_may_be_told_all_the_same() -> None:
    world = await place("a", "b")
    work = Work(1.0)
    pump = world.pump(work)
    async with world.running(pump):
        await work.began()
        world.stop.gently(5.0)
        await asyncio.sleep(0.5)
        pump.resize(9)
    pump.resize(1)
    assert len(world.heard.of(MessageStarted)) == 1
