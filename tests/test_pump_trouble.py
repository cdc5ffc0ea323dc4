"""The pump in trouble: brokers that go and come back, queues that vanish, subscriptions that fall silent, and what no
waiting mends."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

import pytest
from pumping import Place, Work, in_virtual_time, now, numbered, place

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    QueueMismatchError,
    QueueNotFoundError,
    StorageFullError,
    TransportClosedError,
)
from oncue.core.message import Message, Send
from oncue.core.outcome import Done, Outcome
from oncue.events import BrokerBack, BrokerLost, LeaseLost, MessageDone, MessageReleased, PumpStarted, PumpStopped
from oncue.transports.base import QueueSpec

AWAY = ConnectionLostError("the broker is away")
DENIED = AccessDeniedError("not for you")


# Away for a time.


@pytest.mark.parametrize("error", [AWAY, StorageFullError("no room")])
@pytest.mark.parametrize("concurrency", [1, 20])
@in_virtual_time
async def test_a_broker_that_was_away_is_said_once_to_be_lost_and_once_to_be_back(
    error: ConnectionLostError, concurrency: int
) -> None:
    world, work = await place("a"), Work()
    async with world.running(world.pump(work, concurrency=concurrency)):
        await world.heard.wait(MessageDone)
        world.trouble.begin(error)
        await world.heard.wait(BrokerLost)
        await asyncio.sleep(300.0)
        assert world.health.ready() == [f"queue q: {error}"]
        world.trouble.end()
        await world.send("b")
        await world.heard.wait(MessageDone, 2)
        await world.heard.wait(BrokerBack)
        await asyncio.sleep(0)
        assert world.health.ready() == []
        await asyncio.sleep(100.0)
        assert world.health.ready() == []
    assert world.heard.of(BrokerLost) == [BrokerLost("q", str(error))]
    (back,) = world.heard.of(BrokerBack)
    assert 300.0 < back.seconds < 316.0
    assert work.calls == [("a", 1), ("b", 1)]


@in_virtual_time
async def test_a_broker_that_is_away_is_asked_less_and_less_often() -> None:
    world = await place()
    async with world.running(world.pump(Work(), concurrency=50)):
        await asyncio.sleep(1.0)
        before = world.trouble.counts
        world.trouble.begin(AWAY)
        await asyncio.sleep(600.0)
        asked = world.trouble.calls["declare"][2:]
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert 40 < len(asked) < 100
        assert gaps[0] < 0.3 and max(gaps) <= 15.0 and min(gaps[9:]) > 7.0
        assert all(later > earlier for earlier, later in zip(gaps[0:6:2], gaps[2:7:2], strict=True))
        calls = world.trouble.counts - before
        assert calls["receive"] == 0, "nobody receives meanwhile"
        assert calls["depth"] <= 1


@in_virtual_time
async def test_trouble_that_only_receivers_meet_is_no_busy_loop_either() -> None:
    world = await place("a")
    async with world.running(world.pump(Work(), concurrency=50)):
        await world.heard.wait(MessageDone)
        before = world.trouble.counts
        world.trouble.begin(AWAY, "receive")
        await asyncio.sleep(600.0)
        calls = world.trouble.counts - before
        assert calls["declare"] < 200 and calls["receive"] < 100 * 50
        assert world.health.ready() == [f"queue q: {AWAY}"]
        world.trouble.end()
        await world.heard.wait(BrokerBack)
    assert len(world.heard.of(BrokerLost)) == 1


@in_virtual_time
async def test_an_idle_queue_makes_a_round_trip_now_and_then_and_no_more() -> None:
    world = await place()
    async with world.running(world.pump(Work(), concurrency=10)):
        for _ in range(60):
            await asyncio.sleep(60.0)
            assert world.health.ready() == world.health.alive() == []
    assert world.trouble.counts["depth"] <= 3600 / 5
    assert world.trouble.counts["receive"] <= 10  # each of those who wait has asked once
    assert world.trouble.counts["subscribe"] == 1


@in_virtual_time
async def test_a_queue_that_is_silent_counts_as_back_after_a_while() -> None:
    world = await place()
    async with world.running(world.pump(Work())):
        await asyncio.sleep(1.0)
        world.trouble.wake(AWAY)
        (back,) = await world.heard.wait(BrokerBack)
        await asyncio.sleep(0)
        assert world.health.ready() == []
        assert back.seconds == pytest.approx(5.1, abs=0.1)


@in_virtual_time
async def test_trouble_that_comes_back_at_any_moment_is_sat_out_each_time() -> None:
    for moment in (0.05, 0.2, 4.9, 5.0, 5.05, 5.1, 5.2, 7.0):
        world, work = await place(), Work()
        async with world.running(world.pump(work, concurrency=3)):
            await asyncio.sleep(1.0)
            world.trouble.wake(AWAY)
            for _ in range(3):
                await asyncio.sleep(moment)
                world.trouble.wake(AWAY)
            await asyncio.sleep(20.0)
            await world.send("a")
            await world.heard.wait(MessageDone)
            assert world.trouble.counts["subscribe"] == 1, moment
        assert len(world.heard.of(BrokerLost)) == len(world.heard.of(BrokerBack))


@in_virtual_time
async def test_trouble_in_the_very_moment_of_calm_does_not_leave_it_waiting_for_ever() -> None:
    world, work = await place(), Work()
    async with world.running(world.pump(work)):
        await asyncio.sleep(1.0)
        world.trouble.wake(AWAY)
        await world.heard.wait(BrokerLost)
        while world.trouble.counts["receive"] < 2:
            await asyncio.sleep(0.01)
        calm = world.trouble.calls["receive"][1] + 5.0
        asyncio.get_running_loop().call_at(calm - 5e-10, world.trouble.wake, AWAY)  # in the same turn of the loop
        await asyncio.sleep(30.0)
        await world.send("a")
        before = now()
        await world.heard.wait(MessageDone)
        assert now() - before < 1.0
        assert world.trouble.counts["subscribe"] == 1


@in_virtual_time
async def test_a_message_that_was_on_its_way_already_does_not_make_a_lost_broker_look_well() -> None:
    world, work = await place(), Work()
    async with world.running(world.pump(work, concurrency=2)):
        await asyncio.sleep(1.0)
        (subscription,) = world.trouble.subscriptions
        waiter = subscription.first_waiter()
        assert waiter is not None
        waiter.set_exception(AWAY)
        world.trouble.begin(AWAY, "declare", "depth")
        await world.heard.wait(BrokerLost)
        await world.send("a")
        await world.heard.wait(MessageDone)
        assert world.health.ready() == [f"queue q: {AWAY}"]
        world.trouble.end()
        await world.heard.wait(BrokerBack)


@pytest.mark.parametrize("kind", ["declare", "subscribe"])
@in_virtual_time
async def test_a_broker_that_is_away_at_the_beginning_is_waited_for(kind: str) -> None:
    world = await place("a")
    world.trouble.begin(AWAY, kind)
    async with world.running(world.pump(Work())):
        await asyncio.sleep(100.0)
        assert world.health.ready() == [f"queue q: {AWAY}"]
        assert world.trouble.counts[kind] < 20
        assert world.health.alive() == []
        await asyncio.sleep(50.0)
        assert len(world.health.alive()) == 1
        world.trouble.end()
        await world.heard.wait(MessageDone)
        assert world.health.ready() == world.health.alive() == []
    assert len(world.heard.of(BrokerLost)) == len(world.heard.of(BrokerBack)) == 1


@in_virtual_time
async def test_work_that_goes_on_while_the_broker_is_away_is_settled_when_it_is_back() -> None:
    world, work = await place("a", lease=60.0), Work(10.0)
    async with world.running(world.pump(work, lease=60.0)):
        await work.began()
        world.trouble.begin(AWAY)
        await asyncio.sleep(40.0)
        world.trouble.end()
        await world.heard.wait(MessageDone)
    assert work.calls == [("a", 1)]
    assert not world.heard.of(LeaseLost)
    assert await world.depth() == (0, 0, 0)


# Queues that vanish.


@in_virtual_time
async def test_a_queue_that_is_deleted_underneath_is_made_again() -> None:
    world, work = await place("a"), Work()
    async with world.running(world.pump(work, concurrency=3)):
        await world.heard.wait(MessageDone)
        await world.transport.delete("q-dlq")
        await world.transport.delete("q")
        await world.heard.wait(BrokerLost)
        await world.heard.wait(BrokerBack)
        await world.send("b")
        await world.heard.wait(MessageDone, 2)
    assert world.heard.of(BrokerLost) == [BrokerLost("q", "queue 'q' does not exist")]
    assert [spec.name for spec in await world.transport.queues()] == ["q", "q-dlq"]


@in_virtual_time
async def test_a_queue_that_is_deleted_under_a_handler_takes_its_message_with_it_and_the_pump_goes_on() -> None:
    world, work = await place("a"), Work(held=True)
    async with world.running(world.pump(work)):
        await work.began()
        await world.transport.delete("q")
        work.gate.set()
        await world.heard.wait(LeaseLost)
        await world.heard.wait(BrokerBack)
        await world.send("b")
        await world.heard.wait(MessageDone)
    assert work.calls == [("a", 1), ("b", 1)]


@in_virtual_time
async def test_a_queue_that_vanishes_before_it_is_subscribed_is_made_again() -> None:
    world = await place("a")
    world.trouble.once["subscribe"] = deque([QueueNotFoundError("q")])
    async with world.running(world.pump(Work())):
        await world.heard.wait(MessageDone)
    assert len(world.heard.of(BrokerBack)) == 1


# Subscriptions that fall silent.


def deafen(world: Place) -> None:
    """Let the subscriptions of now get no message any more, without an error."""
    for subscription in world.trouble.subscriptions:
        subscription._prefetch = 0
        subscription.update_hunger(world.transport.inner.queue("q"))


@in_virtual_time
async def test_a_subscription_that_falls_silent_while_messages_wait_is_made_anew() -> None:
    world, work = await place("a"), Work()
    async with world.running(world.pump(work, concurrency=3)):
        await world.heard.wait(MessageDone)
        await asyncio.sleep(60.0)
        deafen(world)
        await world.send("b", "c")
        before = now()
        await world.heard.wait(MessageDone, 3)
        assert 4.9 < now() - before < 16.0
    assert world.trouble.counts["subscribe"] == 2
    assert len(world.heard.of(PumpStarted)) == len(world.heard.of(PumpStopped)) == 1
    assert not world.heard.of(MessageReleased)


@in_virtual_time
async def test_a_subscription_is_left_alone_while_handlers_are_busy() -> None:
    world, work = await place(*numbered(5)), Work(3600.0)
    async with world.running(world.pump(work, concurrency=2)):
        await work.began(2)
        await asyncio.sleep(1000.0)
        assert await world.depth() == (3, 2, 0)
    assert world.trouble.counts["subscribe"] == 1


@in_virtual_time
async def test_a_subscription_is_left_alone_when_what_waits_is_not_for_it_yet() -> None:
    world = await place(fifo=True)
    async with world.transport.inner.subscribe("q", prefetch=1) as other:
        await world.transport.send(*(Send("q", Message(b"{}", id, key="k")) for id in ("a", "b")))
        await other.receive()
        async with world.running(world.pump(Work(), fifo=True)):
            await asyncio.sleep(50.0)
            assert await world.depth() == (1, 1, 0)
    assert world.trouble.counts["subscribe"] == 1


# What no waiting mends.


@in_virtual_time
async def test_a_queue_with_other_settings_is_an_error_and_stays_as_it_is() -> None:
    world, work = await place("a", lease=60.0), Work()
    with pytest.raises(QueueMismatchError, match="lease"):
        await world.pump(work, lease=30.0).run(world.stop)
    assert (work.calls, await world.depth()) == ([], (1, 0, 0))
    assert not world.health._pulses


@pytest.mark.parametrize("kind", ["receive", "extend", "depth"])
@in_virtual_time
async def test_a_refusal_ends_it_and_gives_the_other_messages_back(kind: str) -> None:
    world, work = await place(*numbered(4), lease=9.0), Work(3600.0)
    pump = world.pump(work, concurrency=10, lease=9.0)
    task = asyncio.create_task(pump.run(world.stop))
    await work.began(4)
    world.trouble.begin(DENIED, kind)
    with pytest.raises(AccessDeniedError):
        await task
    world.trouble.end()
    assert sorted(work.cancelled) == ["0", "1", "2", "3"]
    assert await world.attempts(4) == dict.fromkeys("0123", 1)
    assert world.heard.of(PumpStopped) == [PumpStopped("q", 0, 4)]
    assert not world.health._pulses
    assert not world.stop.requested


@in_virtual_time
async def test_a_queue_that_comes_back_with_other_settings_is_an_error() -> None:
    world = await place()
    task = asyncio.create_task(world.pump(Work()).run(world.stop))
    await asyncio.sleep(1.0)
    await world.transport.delete("q")
    await world.transport.declare(QueueSpec(name="q", lease=1.0))
    with pytest.raises(QueueMismatchError):
        await task


@in_virtual_time
async def test_a_transport_that_is_closed_underneath_is_an_error() -> None:
    world, work = await place("a"), Work(3600.0)
    task = asyncio.create_task(world.pump(work, concurrency=2).run(world.stop))
    await work.began()
    await world.transport.close()
    with pytest.raises(TransportClosedError):
        await task
    assert work.cancelled == ["a"]


@in_virtual_time
async def test_a_fault_in_a_listener_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = await place("a")
    caplog.set_level("CRITICAL")

    def listener(_event: object) -> None:
        raise RuntimeError("broken")

    world.events.subscribe(listener)

    async def handler(_message: Message, _attempt: int) -> Outcome:
        return Done()

    async with world.running(world.pump(handler)):
        await world.heard.wait(MessageDone)
