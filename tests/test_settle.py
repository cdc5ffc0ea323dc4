"""Settling: whatever the outcome and whatever goes wrong, the message is in exactly one place afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unreliable import Fault, UnreliableTransport

from oncue.core.errors import AccessDeniedError, ConnectionLostError, StorageFullError, TransportError
from oncue.core.failure import PROCESSING_ERROR, ROUTING_ERROR, Failure
from oncue.core.message import Message, Send
from oncue.core.outcome import Dead, Done, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.dead import DeadLetter, dead_letter, list_dead
from oncue.events import (
    Event,
    Events,
    LeaseLost,
    MessageDead,
    MessageDone,
    MessageReleased,
    MessageRetried,
    SettleFailed,
)
from oncue.settle import OnDead, Settlement, no_sends
from oncue.testing import run_in_virtual_time
from oncue.testing.conformance.suite import now
from oncue.transports.base import Lease, QueueSpec
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport

MESSAGE = Message(b"body", "a", {"own": "x"}, "key")
FAILURE = Failure(PROCESSING_ERROR, "ValueError", "bad")
POLICY = RetryPolicy(max_attempts=3, base=10.0, factor=2.0, jitter=0.0)
AWAY = ConnectionLostError("away")


def out(id: str, queue: str = "next") -> Send:
    return Send(queue, Message(b"out " + id.encode(), id))


class World:
    """Queue `q` with its dead letters, `next` and `reply`, over a transport that fails as it is told; what was heard."""

    def __init__(self, inner: MemoryTransport, transport: UnreliableTransport, on_dead: OnDead) -> None:
        self.inner = inner
        self.transport = transport
        self.heard: list[Event] = []
        events = Events()
        events.subscribe(self.heard.append)
        self.settlement = Settlement(transport=transport, queue="q", retry=POLICY, on_dead=on_dead, events=events)

    @asynccontextmanager
    async def lease(self, attempt: int = 1) -> AsyncIterator[Lease]:
        """A lease of `MESSAGE` at its `attempt`."""
        await self.inner.send(Send("q", MESSAGE))
        async with self.inner.subscribe("q", prefetch=1) as subscription:
            for _ in range(attempt - 1):
                await (await subscription.receive()).nack()
        async with self.transport.subscribe("q", prefetch=1) as subscription:
            yield await subscription.receive()

    async def settle(self, outcome: Outcome, attempt: int = 1) -> Outcome | None:
        async with self.lease(attempt) as lease:
            return await self.settlement.settle(lease, outcome, 0.5)

    async def ids(self, queue: str) -> list[str]:
        if queue not in self.inner.store.queues:
            return []
        return [message.id for message in await self.inner.peek(queue, limit=100)]

    async def letter(self) -> DeadLetter:
        (letter,) = await list_dead(self.inner, "q-dlq")
        return letter

    def heard_of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.heard if type(event) is kind]


async def new_world(
    *queues: str,
    on_dead: OnDead = no_sends,
    max_body: int | None = None,
    longest_delay: float | None = None,
    lease: float = 60.0,
) -> World:
    features = msgspec.structs.replace(FEATURES, max_body=max_body, longest_delay=longest_delay)
    inner = MemoryTransport(MemoryStore(), features)
    for queue in queues or ("q-dlq", "next", "reply"):
        await inner.declare(QueueSpec(name=queue))
    await inner.declare(QueueSpec(name="q", lease=lease))
    return World(inner, UnreliableTransport(inner), on_dead)


def in_virtual_time(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        run_in_virtual_time(scenario())

    return test


# What each outcome comes to.


@in_virtual_time
async def test_a_retry_waits_no_longer_than_the_transport_can() -> None:
    world = await new_world(longest_delay=900.0)
    assert await world.settle(Retry(FAILURE, 3600.0)) == Retry(FAILURE, 900.0)
    (retried,) = world.heard
    assert isinstance(retried, MessageRetried) and retried.delay == 900.0


@in_virtual_time
async def test_done_acknowledges_and_sends() -> None:
    world = await new_world()
    assert await world.settle(Done((out("b"), out("c")))) == Done((out("b"), out("c")))
    assert (await world.ids("q"), await world.ids("next")) == ([], ["b", "c"])
    assert world.heard == [MessageDone("q", "a", 1, 0.5, 2)]


@in_virtual_time
async def test_a_retry_comes_back_after_the_wait_of_the_policy_with_one_attempt_more() -> None:
    world = await new_world()
    started = now()
    assert await world.settle(Retry(FAILURE), 2) == Retry(FAILURE, 20.0)
    async with world.inner.subscribe("q", prefetch=1) as subscription:
        lease = await subscription.receive()
        assert (lease.attempt, lease.message) == (3, MESSAGE)
        assert now() - started == pytest.approx(20.0)
    assert world.heard == [MessageRetried("q", "a", 2, 0.5, 20.0, "ValueError: bad")]


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        (Retry(FAILURE, 7.0), 7.0),
        (Retry(FAILURE, 0.0), 0.0),
        (Retry(msgspec.structs.replace(FAILURE, retry_after=4.0)), 4.0),
    ],
)
def test_a_wait_that_the_handler_asks_for_wins_over_the_policy(asked: Retry, wait: float) -> None:
    async def scenario() -> None:
        world = await new_world()
        settled = await world.settle(asked)
        assert isinstance(settled, Retry) and settled.delay == wait
        depth = await world.inner.depth("q")
        assert (depth.ready, depth.delayed) == ((0, 1) if wait else (1, 0))

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("asked", [Retry(FAILURE), Retry(FAILURE, 5.0)])
def test_a_retry_without_attempts_left_is_dead(asked: Retry) -> None:
    async def scenario() -> None:
        world = await new_world()
        assert await world.settle(asked, 3) == Dead(FAILURE)
        assert (await world.ids("q"), await world.ids("q-dlq")) == ([], ["a"])
        assert (await world.letter()).attempts == 3

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_a_dead_message_goes_to_the_dead_letters_whole_with_what_else_goes_out() -> None:
    world = await new_world(on_dead=lambda message, failure: [out(f"{message.id} {failure.type}")])
    assert await world.settle(Dead(FAILURE), 2) == Dead(FAILURE)
    letter = await world.letter()
    assert (letter.original, letter.queue, letter.attempts) == (MESSAGE, "q", 2)
    assert (letter.reason, letter.type, letter.message) == (PROCESSING_ERROR, "ValueError", "bad")
    assert (await world.ids("q"), await world.ids("next")) == ([], ["a ValueError"])
    assert world.heard == [MessageDead("q", "a", 2, 0.5, "ValueError: bad")]


@in_virtual_time
async def test_a_released_message_is_back_at_once_and_uncounted() -> None:
    world = await new_world()
    assert await world.settle(Release(), 2) == Release()
    async with world.inner.subscribe("q", prefetch=1) as subscription:
        assert (await subscription.receive()).attempt == 2
    assert world.heard == [MessageReleased("q", "a", 2, 0.5)]


@in_virtual_time
async def test_where_nobody_listens_nothing_is_told_and_all_is_done() -> None:
    world = await new_world()
    silent = msgspec.structs.replace(world.settlement, events=Events())
    async with world.lease() as lease:
        world.transport.settling.add(AWAY)
        assert await silent.settle(lease, Done((out("b"),)), 0.5) == Done((out("b"),))
    assert (world.heard, await world.ids("next")) == ([], ["b"])


# What a transport refuses for good.


@in_virtual_time
async def test_a_dead_queue_that_is_not_there_is_made() -> None:
    world = await new_world("next", on_dead=lambda message, failure: [out("b")])
    assert await world.settle(Dead(FAILURE)) == Dead(FAILURE)
    assert (await world.ids("q"), await world.ids("q-dlq")) == ([], ["a"])


@in_virtual_time
async def test_what_else_goes_out_does_not_keep_a_message_from_the_dead_letters() -> None:
    for other in (out("b", "gone"), Send("next", Message(b"x" * 2000, "b"))):
        world = await new_world(on_dead=lambda message, failure, other=other: [other], max_body=1000)
        assert await world.settle(Dead(FAILURE)) == Dead(FAILURE)
        assert (await world.ids("q"), await world.ids("q-dlq"), await world.ids("next")) == ([], ["a"], [])
        assert len(world.heard_of(SettleFailed)) == 1


@in_virtual_time
async def test_a_send_to_a_queue_that_is_not_there_makes_a_dead_letter_at_once() -> None:
    world = await new_world()
    assert isinstance(await world.settle(Done((out("b"), out("c", "gone"))), 1), Dead)
    letter = await world.letter()
    assert (letter.reason, letter.type, letter.message) == (
        ROUTING_ERROR,
        "QueueNotFoundError",
        "queue 'gone' does not exist",
    )
    assert (await world.ids("q"), await world.ids("next")) == ([], [])


@in_virtual_time
async def test_a_missing_dead_queue_does_not_cost_those_who_wait_their_answer() -> None:
    world = await new_world(on_dead=lambda message, failure: [out("b", "gone"), out("b")])
    await world.transport.delete("q-dlq")
    assert await world.settle(Dead(FAILURE)) == Dead(FAILURE)
    assert (await world.ids("q"), await world.ids("q-dlq"), await world.ids("next")) == ([], ["a"], ["b"])


@in_virtual_time
async def test_a_result_over_the_limit_is_dead_at_once() -> None:
    world = await new_world(max_body=10)
    assert isinstance(await world.settle(Done((Send("next", Message(b"x" * 11, "b")),))), Dead)
    assert (await world.letter()).type == "MessageTooLargeError"
    assert await world.ids("next") == []


@in_virtual_time
async def test_a_reply_that_nobody_waits_for_is_dropped_and_the_rest_is_done() -> None:
    world = await new_world()
    replies = (out("r1", "reply"), out("r2", "gone"), out("r3", "reply"), out("r4", "left"))
    settled = await world.settle(Done((out("b"),), replies))
    assert isinstance(settled, Done)
    assert (await world.ids("q"), await world.ids("next"), await world.ids("reply")) == ([], ["b"], ["r1", "r3"])


@in_virtual_time
async def test_a_reply_does_not_make_up_for_a_send_whose_queue_is_gone() -> None:
    world = await new_world()
    settled = await world.settle(Done((out("b", "gone"),), (out("r", "reply"), out("r", "left"))))
    assert isinstance(settled, Dead)
    assert (await world.ids("q"), await world.ids("q-dlq"), await world.ids("reply")) == ([], ["a"], [])


# What goes wrong for a time.


@pytest.mark.parametrize("outcome", [Done((out("b"),)), Retry(FAILURE), Dead(FAILURE), Release()])
@pytest.mark.parametrize("error", [AWAY, StorageFullError("full")])
def test_a_transport_that_is_away_is_asked_until_it_is_back(outcome: Outcome, error: TransportError) -> None:
    async def scenario() -> None:
        world = await new_world()
        world.transport.settling.add(error, 4)
        started = now()
        settled = await world.settle(outcome)
        assert type(settled) is type(outcome)
        assert world.heard_of(SettleFailed) == [SettleFailed("q", "a", str(error))] * 4
        assert 0.3 < now() - started < 1.0, "the waits grow"
        assert len(await world.ids("q") + await world.ids("q-dlq") + await world.ids("next")) == 1

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("outcome", [Done((out("b"),)), Retry(FAILURE), Dead(FAILURE), Release()])
def test_a_transport_that_stays_away_is_asked_until_the_lease_is_over(outcome: Outcome) -> None:
    async def scenario() -> None:
        world = await new_world()
        world.transport.settling.add(AWAY, 40)
        async with world.lease() as lease:
            assert await world.settlement.settle(lease, outcome, 0.5) is None
            assert 80 < now() < 200, "it does not hurry"
        assert world.heard[-1] == LeaseLost("q", "a", 1, 0.5)
        assert (await world.ids("q"), await world.ids("q-dlq"), await world.ids("next")) == (["a"], [], [])

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("outcome", [Done((out("b"),)), Dead(FAILURE)])
def test_an_answer_that_got_lost_does_not_make_it_happen_twice(outcome: Outcome) -> None:
    async def scenario() -> None:
        world = await new_world()
        world.transport.settling.add(AWAY, done=True)
        assert await world.settle(outcome) is None
        assert len(await world.ids("next") + await world.ids("q-dlq")) == 1
        assert await world.ids("q") == []

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("outcome", [Done((out("b"),)), Retry(FAILURE), Dead(FAILURE), Release()])
def test_a_lease_that_ran_out_settles_nothing(outcome: Outcome) -> None:
    async def scenario() -> None:
        world = await new_world(lease=5.0)
        async with world.lease() as lease, world.inner.subscribe("q", prefetch=1) as other:
            later = await other.receive()
            assert later.attempt == 2
            assert await world.settlement.settle(lease, outcome, 0.5) is None
            assert world.heard == [LeaseLost("q", "a", 1, 0.5)]
            await later.ack()
        assert (await world.ids("q"), await world.ids("q-dlq"), await world.ids("next")) == ([], [], [])

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_a_transport_that_was_closed_settles_nothing_and_is_not_asked_again() -> None:
    world = await new_world()
    async with world.lease() as lease:
        await world.inner.close()
        assert await world.settlement.settle(lease, Done((out("b"),)), 0.5) is None
    assert world.transport.settling.asked == 1
    again = MemoryTransport(world.inner.store)
    assert [message.id for message in await again.peek("q", limit=9)] == ["a"]


# Whatever the outcome and the faults.

FAULTS = st.none() | st.builds(
    Fault, st.sampled_from([AWAY, StorageFullError("full"), AccessDeniedError("no")]), done=st.booleans()
)
OUTCOMES = st.sampled_from(
    [
        Done(),
        Done((out("b"), out("c"))),
        Done((out("b"), out("x", "gone"))),
        Done((out("b"),), (out("r", "reply"), out("x", "gone"))),
        Retry(FAILURE),
        Retry(FAILURE, 3.0),
        Retry(msgspec.structs.replace(FAILURE, final=True)),
        Retry(msgspec.structs.replace(FAILURE, retry_after=1e300)),
        Dead(FAILURE),
        Release(),
    ]
)


@settings(deadline=None)  # the time that others take from the machine is no fault of it
@given(
    outcome=OUTCOMES,
    attempt=st.integers(1, 4),
    faults=st.lists(FAULTS, max_size=30),
    queues=st.sampled_from([("next", "q-dlq", "reply"), ("next", "reply")]),
    also=st.sampled_from([(), (out("e"),), (out("e", "gone"),)]),
)
def test_whatever_happens_the_message_is_in_exactly_one_place(
    outcome: Outcome, attempt: int, faults: list[Fault | None], queues: tuple[str, ...], also: Sequence[Send]
) -> None:
    async def scenario() -> None:
        world = await new_world(*queues, on_dead=lambda message, failure: also)
        world.transport.settling.plan.extend(faults)
        world.transport.declaring.plan.extend(faults[1::3])
        settled = await world.settle(outcome, attempt)
        waits, dead, sent = [await world.ids(queue) for queue in ("q", "q-dlq", "next")]
        finished = not waits and not dead
        assert len(waits) + len(dead) <= 1
        if finished:
            assert isinstance(outcome, Done), "only what is done may be gone"
        wanted = [send.message.id for send in outcome.sends] if isinstance(outcome, Done) else []
        if finished:
            assert sent == wanted
        else:
            assert sent in ([], ["e"])
            assert not sent or dead
        match settled:
            case Done():
                assert finished
            case Dead():
                assert dead
            case Retry() | Release():
                assert waits
            case None:
                pass
        lost = [type(event) for event in world.heard if type(event) is not SettleFailed]
        assert len(lost) == 1, "one word about the end of each attempt"

    run_in_virtual_time(scenario())


def test_a_letter_that_was_foreign_is_buried_like_any_other() -> None:
    again = dead_letter("q", dead_letter("q", MESSAGE, FAILURE, 1).message, FAILURE, 2)
    assert DeadLetter.parse("q-dlq", again.message).original == MESSAGE


@pytest.mark.parametrize("outcome", [Done((out("b"),)), Retry(FAILURE), Dead(FAILURE), Release()])
def test_a_transport_that_refuses_everything_is_asked_a_few_times_and_then_the_lease_runs_out(outcome: Outcome) -> None:
    async def scenario() -> None:
        world = await new_world()
        world.transport.settling.add(AccessDeniedError("no"), 100)
        async with world.lease() as lease:
            assert await world.settlement.settle(lease, outcome, 0.5) is None
            assert world.transport.settling.asked < 5
        assert world.heard[-1] == LeaseLost("q", "a", 1, 0.5)
        assert (await world.ids("q"), await world.ids("q-dlq"), await world.ids("next")) == (["a"], [], [])

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_a_dead_queue_with_settings_of_its_own_takes_the_message_though_what_else_goes_out_cannot() -> None:
    world = await new_world("next", on_dead=lambda message, failure: [out("b", "gone")])
    await world.inner.declare(QueueSpec(name="q-dlq", lease=7.0))
    assert await world.settle(Dead(FAILURE)) == Dead(FAILURE)
    assert (await world.ids("q"), await world.ids("q-dlq")) == ([], ["a"])


@in_virtual_time
async def test_a_send_that_no_transport_takes_is_dead_at_once() -> None:
    world = await new_world()
    assert isinstance(await world.settle(Done((msgspec.structs.replace(out("b"), delay=1e12),))), Dead)
    assert (await world.letter()).type == "InvalidValueError"
    assert (await world.ids("q"), await world.ids("next")) == ([], [])


@in_virtual_time
async def test_a_fault_in_what_else_goes_out_does_not_keep_a_message_from_the_dead_letters() -> None:
    def broken(message: Message, failure: Failure) -> Sequence[Send]:
        raise RuntimeError("a fault of ours")

    world = await new_world(on_dead=broken)
    assert await world.settle(Dead(FAILURE)) == Dead(FAILURE)
    assert (await world.ids("q"), await world.ids("q-dlq")) == ([], ["a"])
