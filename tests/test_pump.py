"""The pump at work: how much runs at once, how leases are kept, and what becomes of handlers that go wrong."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from typing import Any

import pytest
from pumping import Place, Work, in_virtual_time, now, numbered, place

from oncue.core.errors import ConnectionLostError
from oncue.core.failure import CRASH_ERROR, PROCESSING_ERROR, Failure
from oncue.core.message import Message, Send
from oncue.core.outcome import Dead, Done, Outcome, Retry
from oncue.core.retry import RetryPolicy
from oncue.dead import list_dead
from oncue.events import (
    Events,
    LeaseLost,
    LoopBlocked,
    MessageDead,
    MessageDone,
    MessageRetried,
    MessageStarted,
    PumpStarted,
    PumpStopped,
    PumpStopping,
)
from oncue.pump import Pump, Stop
from oncue.settle import Settlement
from oncue.transports.base import QueueSpec

AHEAD = 128
AWAY = ConnectionLostError("away")


# What it does at all.


@in_virtual_time
async def test_each_message_is_handled_and_gone() -> None:
    world = await place(*numbered(500))
    work = Work()
    async with world.running(world.pump(work, concurrency=7)):
        await world.heard.wait(MessageDone, 500)
    assert sorted(work.calls) == sorted((id, 1) for id in numbered(500))
    assert await world.depth() == (0, 0, 0)


@in_virtual_time
async def test_the_queue_and_its_dead_queue_are_made_where_they_are_missing() -> None:
    world = await place()
    await world.transport.delete("q")
    await world.transport.delete("q-dlq")
    async with world.running(world.pump(Work(), lease=7.0)):
        await world.heard.wait(PumpStarted)
    assert [(spec.name, spec.lease) for spec in await world.transport.queues()] == [("q", 7.0), ("q-dlq", 60.0)]


@in_virtual_time
async def test_a_dead_queue_has_no_dead_queue_of_its_own() -> None:
    world = await place()
    settlement = Settlement(transport=world.transport, queue="q-dlq", retry=RetryPolicy(), events=world.events)
    async with world.running(Pump(QueueSpec(name="q-dlq"), settlement, Work(), concurrency=1)):
        await world.heard.wait(PumpStarted)
    assert [spec.name for spec in await world.transport.queues()] == ["q", "q-dlq"]


@in_virtual_time
async def test_a_dead_queue_may_have_settings_of_its_own() -> None:
    world = await place()
    await world.transport.delete("q-dlq")
    await world.transport.declare(QueueSpec(name="q-dlq", retention=86400.0))
    async with world.running(world.pump(Work())):
        await world.heard.wait(PumpStarted)


@in_virtual_time
async def test_events_tell_of_a_message_from_its_start_to_its_end_and_of_the_pump() -> None:
    world = await place("a")
    async with world.running(world.pump(Work(2.0), concurrency=3)):
        await world.heard.wait(MessageDone)
    assert [type(event) for event in world.heard.events] == [
        PumpStarted,
        MessageStarted,
        MessageDone,
        PumpStopping,
        PumpStopped,
    ]
    assert world.heard.of(PumpStarted) == [PumpStarted("q", 3)]
    assert world.heard.of(MessageStarted) == [MessageStarted("q", "a", 1)]
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 0, 0)]


@in_virtual_time
async def test_where_nobody_listens_it_works_all_the_same() -> None:
    world = await place("a", "b")
    stop, seen = Stop(), []

    async def handler(message: Message, attempt: int) -> Outcome:
        seen.append((message.id, attempt))
        if len(seen) == 3:
            stop.gently(5.0)
        return Done() if attempt == 2 or message.id == "b" else Retry(Failure(PROCESSING_ERROR, "E", "e"))

    settlement = Settlement(
        transport=world.transport, queue="q", retry=RetryPolicy(base=1.0, jitter=0.0), events=Events()
    )
    await Pump(QueueSpec(name="q"), settlement, handler, concurrency=2).run(stop)
    assert sorted(seen) == [("a", 1), ("a", 2), ("b", 1)]


# Bounds.


@pytest.mark.parametrize("concurrency", [1, 5, 200])
@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0])
@in_virtual_time
async def test_never_more_handlers_than_asked_for_run_and_no_fewer(concurrency: int, seconds: float) -> None:
    world = await place(*numbered(600))
    world.trouble.latency["settle"] = 0.01
    work = Work(seconds)
    async with world.running(world.pump(work, concurrency=concurrency)):
        await world.heard.wait(MessageDone, 600)
    assert work.peak <= concurrency
    assert work.peak == concurrency or not seconds
    assert len(work.calls) == 600


@in_virtual_time
async def test_handlers_of_all_lengths_run_within_the_bound() -> None:
    world = await place(*numbered(300))
    chance, running, peak = random.Random(1), 0, 0

    async def handler(_message: Message, _attempt: int) -> Outcome:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(chance.choice([0.0, 0.001, 0.05, 3.0]))
        running -= 1
        return Done()

    async with world.running(world.pump(handler, concurrency=4)):
        await world.heard.wait(MessageDone, 300)
    assert peak == 4


@in_virtual_time
async def test_messages_whose_commit_is_slow_do_not_keep_quick_handlers_waiting_but_are_bounded() -> None:
    world = await place(*numbered(2000))
    world.trouble.latency["settle"] = 1.0
    pump = world.pump(Work(0.0001), concurrency=3)
    most = 0

    def look(_event: object) -> None:
        nonlocal most
        most = max(most, pump.in_flight)

    world.events.subscribe(look)
    async with world.running(pump):
        await world.heard.wait(MessageDone, 2000)
        assert pump.in_flight <= 3 + AHEAD
    assert 100 < most <= 3 + AHEAD
    assert now() < 40.0, "one after the other would be 2000 s"
    assert max(world.trouble.prefetches) == 3 + AHEAD


@in_virtual_time
async def test_nothing_is_fetched_ahead_of_slow_handlers() -> None:
    world = await place(*numbered(60))
    async with world.running(world.pump(Work(1.0), concurrency=2)):
        await world.heard.wait(MessageDone, 20)
        await asyncio.sleep(0.5)
        assert await world.depth() == (38, 2, 0)
    assert world.trouble.prefetches == [2]


@in_virtual_time
async def test_nothing_is_fetched_ahead_where_a_death_of_the_process_could_cost_messages_that_were_never_begun() -> (
    None
):
    for attempts, most in ((1, 1), (2, 1), (3, 1 + AHEAD)):
        world = await place(*numbered(300))
        async with world.running(world.pump(Work(0.0001), concurrency=1, retry=RetryPolicy(max_attempts=attempts))):
            await world.heard.wait(MessageDone, 300)
        assert max(world.trouble.prefetches) == most


@in_virtual_time
async def test_what_was_fetched_ahead_is_given_back_when_a_handler_turns_out_to_be_slow() -> None:
    world = await place(*numbered(100))
    work = Work()
    async with world.running(world.pump(work, concurrency=2)):
        await world.heard.wait(MessageDone, 100)
        assert world.trouble.prefetches == [2, 2 + AHEAD]
        work.gate.clear()
        await world.send("slow", "slow too")
        await work.began(102)
        await asyncio.sleep(2.0)
        assert world.trouble.prefetches == [2, 2 + AHEAD, 2]


@in_virtual_time
async def test_handlers_that_become_slow_are_no_longer_fetched_ahead_of() -> None:
    world = await place(*numbered(200))
    work = Work()
    async with world.running(world.pump(work, concurrency=20)):
        await world.heard.wait(MessageDone, 200)
        work.seconds = 0.3
        await world.send(*(f"slow {number}" for number in range(100)))
        await world.heard.wait(MessageDone, 300)
    assert world.trouble.prefetches == [20, 20 + AHEAD, 20]


# Leases.


@in_virtual_time
async def test_a_handler_of_five_leases_gets_its_message_once() -> None:
    world = await place("a", lease=9.0)
    work = Work(45.0)
    async with world.running(world.pump(work, lease=9.0)):
        await world.heard.wait(MessageDone)
    assert work.calls == [("a", 1)]
    assert world.trouble.calls["extend"] == pytest.approx([3.0 * number for number in range(1, 16)], abs=0.5)
    assert not world.heard.of(LeaseLost)


@pytest.mark.parametrize("hangs", [False, True])
@in_virtual_time
async def test_a_lease_that_could_not_be_extended_is_extended_soon_after(hangs: bool) -> None:
    world = await place("a", lease=9.0)
    work = Work(30.0)
    async with world.running(world.pump(work, lease=9.0)):
        await work.began()
        await asyncio.sleep(2.5)
        if hangs:
            world.trouble.hanging.add("extend")
        else:
            world.trouble.begin(AWAY, "extend")
        await asyncio.sleep(4.0)
        world.trouble.hanging.clear()
        world.trouble.end()
        await world.heard.wait(MessageDone)
    assert work.calls == [("a", 1)]
    expected = [3.0, 5.5, 8.0] if hangs else [3.0, 4.0, 5.0, 6.0, 7.0]
    assert world.trouble.calls["extend"][: len(expected)] == pytest.approx(expected, abs=0.1)


@in_virtual_time
async def test_a_lease_that_is_lost_is_reported_and_its_message_left_to_its_new_owner() -> None:
    world = await place("a", lease=9.0)
    work = Work(20.0)
    world.trouble.begin(AWAY, "extend")
    async with world.running(world.pump(work, lease=9.0)):
        await work.began()
        async with world.transport.inner.subscribe("q", prefetch=1) as other:
            theirs = await other.receive()
            assert (theirs.attempt, now()) == (2, pytest.approx(9.0, abs=0.1))
            await theirs.extend(100.0)
            assert await world.heard.wait(LeaseLost) == [LeaseLost("q", "a", 1, world.heard.of(LeaseLost)[0].seconds)]
            await theirs.ack()
    assert not world.heard.of(MessageDone)
    assert await world.depth() == (0, 0, 0)


@in_virtual_time
async def test_an_extension_of_one_lease_that_is_lost_keeps_the_others_alive() -> None:
    world = await place("a", "b", lease=9.0)
    work = Work(45.0)
    async with world.running(world.pump(work, concurrency=2, lease=9.0)):
        await work.began(2)
        lost, _ = world.trouble.subscriptions.copy().pop()._unsettled
        lost.queue.prolong(lost, 0.001)
        await world.heard.wait(LeaseLost)
        await world.heard.wait(MessageDone, 2)
    assert sorted(work.calls) == [("a", 1), ("a", 2), ("b", 1)]


@in_virtual_time
async def test_a_handler_that_blocks_the_loop_is_reported() -> None:
    world = await place("a", lease=9.0)

    async def handler(_message: Message, _attempt: int) -> Outcome:
        await asyncio.sleep(1.0)
        loop: Any = asyncio.get_running_loop()
        loop._advance(7.0)  # as time.sleep would, were time not virtual
        return Done()

    async with world.running(world.pump(handler, lease=9.0)):
        (blocked,) = await world.heard.wait(LoopBlocked)
        await world.heard.wait(MessageDone)
    assert (blocked.queue, blocked.seconds) == ("q", pytest.approx(5.0, abs=0.1))


@in_virtual_time
async def test_handlers_that_only_take_their_time_are_no_blocked_loop() -> None:
    world = await place("a", lease=9.0)
    async with world.running(world.pump(Work(100.0), lease=9.0)):
        await world.heard.wait(MessageDone)
    assert not world.heard.of(LoopBlocked)


# Messages that take their worker down.


async def crash(world: Place, *ids: str, times: int) -> None:
    """Let workers die of these messages: their leases run out."""
    await world.send(*ids)
    for _ in range(times):
        async with world.transport.subscribe("q", prefetch=len(ids)) as subscription:
            for _ in ids:
                await (await subscription.receive()).nack()


@in_virtual_time
async def test_a_message_over_its_attempts_is_dead_before_a_handler_sees_it() -> None:
    world = await place()
    await crash(world, "poison", times=3)
    await world.send(*numbered(20))
    work = Work()
    async with world.running(world.pump(work, concurrency=3)):
        await world.heard.wait(MessageDone, 20)
        await world.heard.wait(MessageDead)
    assert sorted(work.calls) == sorted((id, 1) for id in numbered(20))
    (letter,) = await list_dead(world.transport, "q-dlq")
    assert (letter.id, letter.reason, letter.attempts) == ("poison", CRASH_ERROR, 4)
    assert "3 attempts" in letter.message
    assert "poison" not in {event.id for event in world.heard.of(MessageStarted)}


@in_virtual_time
async def test_a_message_at_its_last_attempt_is_handled() -> None:
    world = await place()
    await crash(world, "a", times=2)
    work = Work()
    async with world.running(world.pump(work)):
        await world.heard.wait(MessageDone)
    assert work.calls == [("a", 3)]


# Handlers that go wrong.


class BrokenHandlerError(Exception):
    pass


async def await_what_another_cancelled() -> None:
    waited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waited.cancel)
    await waited


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def fail() -> None:
    raise BrokenHandlerError("broken")


async def leave_the_program() -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    ("trouble", "named"),
    [
        (fail, "BrokenHandlerError"),
        (leave_the_program, "SystemExit"),
        (await_what_another_cancelled, "CancelledError"),
        (cancel_itself, "CancelledError"),
    ],
)
@in_virtual_time
async def test_a_handler_that_raises_is_a_failed_attempt_and_nothing_worse(
    trouble: Any, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    world = await place("bad", *numbered(5))

    async def handler(message: Message, _attempt: int) -> Outcome:
        if message.id == "bad":
            await trouble()
        return Done()

    async with world.running(world.pump(handler, concurrency=2)):
        (dead,) = await world.heard.wait(MessageDead)
        await world.heard.wait(MessageDone, 5)
    assert [event.attempt for event in world.heard.of(MessageRetried)] == [1, 2]
    assert (dead.id, dead.attempt) == ("bad", 3)
    (letter,) = await list_dead(world.transport, "q-dlq")
    assert (letter.reason, letter.type) == (PROCESSING_ERROR, named)


@in_virtual_time
async def test_what_no_transport_would_send_is_a_dead_letter_and_the_others_go_on() -> None:
    world = await place("bad", *numbered(5))

    async def handler(message: Message, _attempt: int) -> Outcome:
        return Done((Send("q-dlq", message, -1.0),)) if message.id == "bad" else Done()

    async with world.running(world.pump(handler)):
        await world.heard.wait(MessageDead)
        await world.heard.wait(MessageDone, 5)
    (letter,) = await list_dead(world.transport, "q-dlq")
    assert (letter.id, letter.type) == ("bad", "InvalidValueError")


@in_virtual_time
async def test_a_dead_letter_is_written_even_if_what_goes_with_it_cannot_be_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    world = await place("bad", "good")

    def on_dead(_message: Message, _failure: Failure) -> list[Send]:
        raise BrokenHandlerError("broken")

    async def handler(message: Message, _attempt: int) -> Outcome:
        return Dead(Failure(PROCESSING_ERROR, "E", "e")) if message.id == "bad" else Done()

    async with world.running(world.pump(handler, on_dead=on_dead)):
        await world.heard.wait(MessageDead)
        await world.heard.wait(MessageDone)
    assert await world.ids("q-dlq") == ["bad"]


@in_virtual_time
async def test_a_settle_that_the_transport_breaks_on_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    world = await place("a", "b", lease=9.0)
    world.trouble.errors["settle"] = BrokenHandlerError("a fault of the transport")
    work = Work()
    async with world.running(world.pump(work, lease=9.0)):
        await world.heard.wait(LeaseLost, 2)
        world.trouble.end()
        await world.heard.wait(MessageDone, 2)
    assert sorted(work.calls) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


@pytest.mark.parametrize(
    "asked",
    [
        Retry(Failure(PROCESSING_ERROR, "E", "e", retry_after=1e300)),
        Retry(Failure(PROCESSING_ERROR, "E", "e"), 1e300),
        Retry(Failure(PROCESSING_ERROR, "E", "e"), 1e10),
    ],
)
@in_virtual_time
async def test_a_wait_that_no_transport_takes_is_the_longest_there_is(asked: Retry) -> None:
    world = await place("a")

    async def handler(_message: Message, _attempt: int) -> Outcome:
        return asked

    async with world.running(world.pump(handler)):
        (retried,) = await world.heard.wait(MessageRetried)
    assert retried.delay == 10 * 365 * 86400.0
    assert await world.depth() == (0, 0, 1)
