"""A pump before a handler that queues by itself: it hands over more while that is quick, and no more when it is not."""

from __future__ import annotations

import asyncio

from pumping import in_virtual_time, now, numbered, place

from oncue.core.message import Message
from oncue.core.outcome import Done, Outcome
from oncue.core.retry import RetryPolicy
from oncue.pump import Pump
from oncue.room import Room
from oncue.settle import Settlement
from oncue.transports.base import QueueSpec


class Queueing:
    """A handler that works on one message after the other, each for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.given = 0
        self.peak = 0
        self.done = 0
        self._turn = asyncio.Lock()

    async def __call__(self, _message: Message, _attempt: int) -> Outcome:
        self.given += 1
        self.peak = max(self.peak, self.given)
        async with self._turn:
            await asyncio.sleep(self.seconds)
        self.given -= 1
        self.done += 1
        return Done()


def pump_of(world: object, handler: Queueing, ahead: int) -> Pump:
    settlement = Settlement(transport=world.transport, queue="q", retry=RetryPolicy(), events=world.events)
    pulse = world.health.pulse("q")
    return Pump(QueueSpec(name="q"), settlement, handler, concurrency=1, ahead=ahead, pulse=pulse, clock=now)


async def finished(handler: Queueing, count: int) -> None:
    while handler.done < count:
        await asyncio.sleep(0.01)


@in_virtual_time
async def test_a_quick_handler_that_queues_is_given_more_than_it_works_on() -> None:
    world = await place(*numbered(200))
    handler = Queueing(0.001)
    async with world.running(pump_of(world, handler, 8)):
        await finished(handler, 200)
    assert handler.peak == 9


@in_virtual_time
async def test_a_slow_handler_is_given_what_it_works_on_and_no_more() -> None:
    world = await place(*numbered(10))
    handler = Queueing(0.2)
    async with world.running(pump_of(world, handler, 8)):
        await finished(handler, 10)
    assert handler.peak == 1


@in_virtual_time
async def test_a_handler_that_becomes_slow_is_given_no_more_than_it_works_on_in_the_end() -> None:
    world = await place(*numbered(300))
    handler = Queueing(0.001)
    async with world.running(pump_of(world, handler, 8)):
        await finished(handler, 200)
        handler.seconds = 0.5
        await finished(handler, 240)
        handler.peak = handler.given
        await finished(handler, 250)
    assert handler.peak == 1


async def test_a_room_that_grows_lets_in_who_waits_and_one_that_shrinks_lets_out_first() -> None:
    room, inside = Room(1), []

    async def enter(name: str) -> None:
        await room.enter()
        inside.append(name)

    tasks = [asyncio.create_task(enter(name)) for name in "abcd"]
    await asyncio.sleep(0)
    assert inside == ["a"]
    room.resize(3)
    await asyncio.sleep(0)
    assert len(inside) == 3
    room.resize(1)
    room.leave()
    room.leave()
    await asyncio.sleep(0)
    assert len(inside) == 3
    room.leave()
    await asyncio.sleep(0)
    assert sorted(inside) == ["a", "b", "c", "d"]
    await asyncio.gather(*tasks)
