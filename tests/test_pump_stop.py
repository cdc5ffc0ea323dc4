"""How the pump ends: what is in flight finishes or is given back, nothing is dead-lettered, and it ends in bounded time."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pumping import Place, Work, in_virtual_time, now, numbered, place

from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message
from oncue.core.outcome import Done, Outcome
from oncue.core.retry import RetryPolicy
from oncue.events import (
    BrokerLost,
    LeaseLost,
    MessageDead,
    MessageDone,
    MessageReleased,
    PumpStarted,
    PumpStopped,
    PumpStopping,
    SettleFailed,
)
from oncue.pump import Pump, Stop
from oncue.room import Room
from oncue.stop import cancel, unless

AWAY = ConnectionLostError("away")


@asynccontextmanager
async def begun(world: Place, work: Work, pump: Pump, count: int) -> AsyncIterator[asyncio.Task[None]]:
    """A pump whose handlers are at work on `count` messages."""
    task = asyncio.create_task(pump.run(world.stop))
    await work.began(count)
    yield task
    assert task.done(), "the test sees to its end"


@in_virtual_time
async def test_stopped_gently_it_finishes_what_is_in_flight_and_takes_nothing_more() -> None:
    world, work = await place(*numbered(10)), Work(5.0)
    async with begun(world, work, world.pump(work, concurrency=3), 3) as task:
        world.stop.gently(30.0)
        await task
    assert now() == pytest.approx(5.0, abs=0.1)
    assert sorted(work.calls) == [("0", 1), ("1", 1), ("2", 1)]
    assert await world.depth() == (7, 0, 0)
    assert await world.attempts(7) == dict.fromkeys("3456789", 1)
    assert world.heard.of(PumpStopping) == [PumpStopping("q", 3)]
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 3, 0)]


@in_virtual_time
async def test_what_does_not_finish_in_the_grace_period_is_given_back_uncounted() -> None:
    world, work = await place(*numbered(3)), Work(60.0)
    async with begun(world, work, world.pump(work, concurrency=3), 3) as task:
        world.stop.gently(10.0)
        await task
    assert now() == pytest.approx(10.0, abs=0.1)
    assert sorted(work.cancelled) == ["0", "1", "2"]
    assert await world.attempts(3) == {"0": 1, "1": 1, "2": 1}
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 0, 3)]
    assert len(world.heard.of(MessageReleased)) == 3


@in_virtual_time
async def test_stopped_at_once_it_gives_everything_back() -> None:
    world, work = await place(*numbered(3)), Work(60.0)
    async with begun(world, work, world.pump(work, concurrency=2), 2) as task:
        world.stop.now()
        await task
    assert now() < 0.1
    assert await world.attempts(3) == {"0": 1, "1": 1, "2": 1}


@in_virtual_time
async def test_a_second_word_ends_the_grace_period() -> None:
    world, work = await place("a"), Work(60.0)
    async with begun(world, work, world.pump(work), 1) as task:
        world.stop.gently(30.0)
        asyncio.get_running_loop().call_later(4.0, world.stop.now)
        await task
    assert now() == pytest.approx(4.0, abs=0.1)
    assert await world.attempts(1) == {"a": 1}


@pytest.mark.parametrize("later", [0.0, 1.0])
@in_virtual_time
async def test_said_twice_the_first_grace_period_counts(later: float) -> None:
    world, work = await place("a"), Work(60.0)
    async with begun(world, work, world.pump(work), 1) as task:
        world.stop.gently(3.0)
        if later:
            await asyncio.sleep(later)
        world.stop.gently(30.0)
        await task
    assert now() == pytest.approx(3.0, abs=0.1)


@in_virtual_time
async def test_a_stop_ends_all_pumps_it_was_given_to() -> None:
    world, work = await place("a", "b"), Work(3.0)
    pumps = [world.pump(work), world.pump(work)]
    tasks = [asyncio.create_task(pump.run(world.stop)) for pump in pumps]
    await work.began(2)
    world.stop.gently(10.0)
    await asyncio.gather(*tasks)
    assert await world.depth() == (0, 0, 0)
    assert len(world.heard.of(PumpStopped)) == 2


@in_virtual_time
async def test_an_idle_pump_ends_at_once() -> None:
    world = await place()
    async with world.running(world.pump(Work(), concurrency=5)):
        await world.heard.wait(PumpStarted)
        await asyncio.sleep(100.0)
        world.stop.gently(30.0)
    assert now() == pytest.approx(100.0, abs=0.1)


@pytest.mark.parametrize("gently", [True, False])
@in_virtual_time
async def test_a_stop_that_was_said_before_it_began_lets_nothing_begin(gently: bool) -> None:
    world, work = await place("a"), Work()
    if gently:
        world.stop.gently(30.0)
    else:
        world.stop.now()
    await world.pump(work).run(world.stop)
    assert (work.calls, await world.depth()) == ([], (1, 0, 0))
    assert not world.heard.events


@in_virtual_time
async def test_stopping_never_makes_a_dead_letter_not_even_of_a_last_attempt() -> None:
    world, work = await place("a"), Work(60.0)
    async with begun(world, work, world.pump(work, retry=RetryPolicy(max_attempts=1)), 1) as task:
        world.stop.now()
        await task
    assert await world.attempts(1) == {"a": 1}
    assert not world.heard.of(MessageDead)


# Cancelled.


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("gently_before", [False, True])
@in_virtual_time
async def test_cancelled_it_gives_everything_back_however_often(times: int, gently_before: bool) -> None:
    world, work = await place(*numbered(4)), Work(60.0)
    world.trouble.latency["settle"] = 1.0
    pump = world.pump(work, concurrency=3)
    async with begun(world, work, pump, 3) as task:
        if gently_before:
            world.stop.gently(30.0)
            await asyncio.sleep(0.1)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
    assert now() < 2.0
    assert await world.depth() == (4, 0, 0)
    assert await world.attempts(4) == dict.fromkeys("0123", 1)
    assert len(world.heard.of(MessageReleased)) == 3
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 0, 3)]


@in_virtual_time
async def test_cancelled_before_it_is_connected_it_ends_at_once() -> None:
    for kind in ("declare", "subscribe"):
        world = await place()
        world.trouble.hanging.add(kind)
        task = asyncio.create_task(world.pump(Work()).run(world.stop))
        await asyncio.sleep(50.0)
        task.cancel()
        before = now()
        await asyncio.wait([task])
        assert task.cancelled()
        assert now() - before < 0.1
        assert not world.health._pulses


@in_virtual_time
async def test_when_a_program_ends_by_cancelling_all_its_tasks_the_messages_are_given_back() -> None:
    world, work = await place(*numbered(3)), Work(60.0)
    pump = world.pump(work, concurrency=2, retry=RetryPolicy(max_attempts=1))
    async with begun(world, work, pump, 2) as task:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        assert task.cancelled()
    assert await world.attempts(3) == {"0": 1, "1": 1, "2": 1}
    assert not world.heard.of(MessageDead)


# Handlers that do not let themselves be ended.


@in_virtual_time
async def test_what_a_cancelled_handler_finishes_all_the_same_counts() -> None:
    world = await place("a")
    began = asyncio.Event()

    async def handler(_message: Message, _attempt: int) -> Outcome:
        began.set()
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            await asyncio.sleep(2.0)
        return Done()

    def notice(event: object) -> None:
        task = asyncio.current_task()
        if isinstance(event, MessageDone) and task is not None:
            cancelling.append(task.cancelling())

    cancelling: list[int] = []
    world.events.subscribe(notice)
    world.trouble.latency["settle"] = 1.0
    task = asyncio.create_task(world.pump(handler).run(world.stop))
    await began.wait()
    world.stop.now()
    await task
    assert now() == pytest.approx(3.0, abs=0.1)
    assert await world.depth() == (0, 0, 0)
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 1, 0)]
    assert cancelling == [0], "nobody wants to cancel the settling"


@in_virtual_time
async def test_a_handler_that_refuses_to_end_is_left_behind_and_its_message_given_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await place("stubborn", "b")
    began, freed = asyncio.Event(), asyncio.Event()

    async def handler(message: Message, _attempt: int) -> Outcome:
        if message.id != "stubborn":
            await asyncio.sleep(60.0)
        began.set()
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue
        return Done()

    pump = world.pump(handler, concurrency=2)
    task = asyncio.create_task(pump.run(world.stop))
    await began.wait()
    world.stop.now()
    await task
    assert now() < 10.0
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "1 messages of queue q could not be given back and will come again"
    ]
    assert await world.attempts(2) == {"stubborn": 1, "b": 1}
    assert world.heard.of(MessageReleased) != []
    freed.set()
    await asyncio.wait(pump._abandoned)
    await asyncio.sleep(0)
    assert len(world.heard.of(LeaseLost)) == 1, "what it did in the end is refused"
    assert await world.depth() == (2, 0, 0)


@in_virtual_time
async def test_a_handler_in_a_thread_is_given_back_though_the_thread_runs_on() -> None:
    world = await place("a")
    began, freed = threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        freed.wait(30.0)

    async def handler(_message: Message, _attempt: int) -> Outcome:
        await asyncio.to_thread(job)
        return Done()

    task = asyncio.create_task(world.pump(handler).run(world.stop))
    try:
        await asyncio.to_thread(began.wait)
        world.stop.now()
        await task
        assert await world.attempts(1) == {"a": 1}
    finally:
        freed.set()


# Settling while stopping.


@in_virtual_time
async def test_a_settle_that_is_under_way_is_not_cancelled() -> None:
    world, work = await place("a", "b"), Work()
    world.trouble.latency["settle"] = 3.0
    task = asyncio.create_task(world.pump(work).run(world.stop))
    await work.began(2)
    await asyncio.sleep(1.0)
    world.stop.now()
    await task
    assert now() == pytest.approx(3.0, abs=0.1)
    assert await world.depth() == (0, 0, 0)
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 2, 0)]


@in_virtual_time
async def test_a_settle_is_tried_again_while_the_grace_period_lasts() -> None:
    world, work = await place("a"), Work()
    world.trouble.begin(AWAY, "settle")
    async with begun(world, work, world.pump(work), 1) as task:
        world.stop.gently(30.0)
        asyncio.get_running_loop().call_later(8.0, world.trouble.end)
        await task
    assert 8.0 < now() < 15.0
    assert len(world.heard.of(MessageDone)) == 1
    assert work.calls == [("a", 1)]


@in_virtual_time
async def test_a_settle_that_never_succeeds_does_not_keep_it_from_ending(caplog: pytest.LogCaptureFixture) -> None:
    world, work = await place("a"), Work()
    world.trouble.begin(AWAY, "settle")
    async with begun(world, work, world.pump(work), 1) as task:
        world.stop.gently(10.0)
        await task
    assert 10.0 < now() < 17.0
    assert len(world.heard.of(SettleFailed)) > 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert await world.ids() == ["a"]


@in_virtual_time
async def test_what_was_lost_while_stopping_is_not_said_to_be_finished() -> None:
    world, work = await place("a", lease=9.0), Work(20.0)
    world.trouble.begin(AWAY, "extend")
    async with begun(world, work, world.pump(work, lease=9.0), 1) as task:
        world.stop.gently(60.0)
        await task
    assert len(world.heard.of(LeaseLost)) == 1
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 0, 0)]
    assert await world.attempts(1) == {"a": 2}


# Ending while the broker is away.


@pytest.mark.parametrize("gently", [True, False])
@in_virtual_time
async def test_it_ends_at_once_while_the_broker_is_away(gently: bool) -> None:
    world = await place()
    async with world.running(world.pump(Work(), concurrency=3)):
        await world.heard.wait(PumpStarted)
        world.trouble.begin(AWAY)
        await world.heard.wait(BrokerLost)
        await asyncio.sleep(100.0)
        before = now()
        if gently:
            world.stop.gently(30.0)
        else:
            world.stop.now()
    assert now() - before < 0.1


@pytest.mark.parametrize("kind", ["declare", "subscribe"])
@pytest.mark.parametrize("hangs", [True, False])
@in_virtual_time
async def test_it_ends_at_once_though_it_never_was_connected(kind: str, hangs: bool) -> None:
    world = await place("a")
    if hangs:
        world.trouble.hanging.add(kind)
    else:
        world.trouble.begin(AWAY, kind)
    task = asyncio.create_task(world.pump(Work()).run(world.stop))
    await asyncio.sleep(100.0)
    world.stop.gently(30.0)
    await task
    assert now() == pytest.approx(100.0, abs=0.1)
    assert not world.heard.of(PumpStarted)
    assert not world.heard.of(PumpStopped)
    assert not world.health._pulses


@in_virtual_time
async def test_a_subscription_that_cannot_be_ended_in_order_is_ended_without(caplog: pytest.LogCaptureFixture) -> None:
    for hangs in (True, False):
        caplog.clear()
        world, work = await place("a"), Work()
        if hangs:
            world.trouble.hanging.add("leave")
        else:
            world.trouble.begin(AWAY, "leave")
        before = now()
        async with world.running(world.pump(work)):
            await world.heard.wait(MessageDone)
        assert now() - before < 7.0
        (record,) = caplog.records
        assert record.getMessage() == (
            "leases of queue q could not be given back and will run out: " + ("no answer" if hangs else "away")
        )


# The parts.


@pytest.mark.parametrize("first", [True, False])
@in_virtual_time
async def test_what_comes_in_the_moment_of_stopping_has_come(first: bool) -> None:
    stop, came = Stop(), asyncio.Event()

    async def wait() -> str:
        await came.wait()
        return "it came"

    task = asyncio.create_task(unless(stop, wait()))
    await asyncio.sleep(1.0)
    for happens in (stop.now, came.set) if first else (came.set, stop.now):
        happens()
    assert await task == "it came"


@in_virtual_time
async def test_an_error_in_what_is_waited_for_is_raised_even_if_it_is_a_timeout() -> None:
    async def fail() -> str:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await unless(Stop(), fail())


@in_virtual_time
async def test_what_a_cancelled_task_dies_of_is_logged_unless_all_receivers_get_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def die(error: Exception) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise error from None

    tasks = [asyncio.create_task(die(error)) for error in (AWAY, RuntimeError("a fault"))]
    await asyncio.sleep(0)
    assert await cancel(tasks) == set()
    (record,) = caplog.records
    assert record.exc_info is not None and str(record.exc_info[1]) == "a fault"


@in_virtual_time
async def test_a_place_that_was_given_to_somebody_cancelled_goes_to_the_next() -> None:
    room = Room(1)
    await room.enter()
    other, cancelled, given = (asyncio.create_task(room.enter()) for _ in range(3))  # the last one comes first
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    room.leave()
    given.cancel()
    await asyncio.wait([given])
    await other
    room.leave()
    await room.enter()
    assert given.cancelled() and cancelled.cancelled()
