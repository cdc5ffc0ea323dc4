"""Dead letters: what is written on them, and that redriving and discarding loses and doubles none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unreliable import UnreliableTransport

from oncue.core.errors import AccessDeniedError, ConnectionLostError, LeaseLostError, QueueNotFoundError
from oncue.core.failure import Failure
from oncue.core.message import Message, Send
from oncue.core.times import timestamp
from oncue.dead import (
    DEAD_ATTEMPTS,
    DEAD_FIRST,
    DEAD_HEADERS,
    DEAD_LAST,
    DEAD_MESSAGE,
    DEAD_TRACEBACK,
    SENT_AT,
    DeadFilter,
    DeadLetter,
    Swept,
    dead_letter,
    dead_queue_name,
    discard,
    find_dead,
    is_dead_queue,
    list_dead,
    redrive,
)
from oncue.testing import run_in_virtual_time
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Transport
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
FAILURE = Failure("processing_error", "ValueError", "bad", "Traceback …")

Scenario = Callable[[Transport], Awaitable[None]]


def on_each_store(scenario: Scenario) -> Callable[[str, Path], None]:
    """Run the scenario in memory, in virtual time, and on SQLite."""

    @pytest.mark.parametrize("store", ["memory", "sqlite"])
    def test(store: str, tmp_path: Path) -> None:
        async def main() -> None:
            transport = await open_transport("memory:" if store == "memory" else f"sqlite:///{tmp_path}/q.db")
            try:
                await transport.declare(QueueSpec(name="q"))
                await transport.declare(QueueSpec(name="q-dlq"))
                await scenario(transport)
            finally:
                await transport.close()

        (run_in_virtual_time if store == "memory" else asyncio.run)(main())

    test.__doc__ = scenario.__doc__
    return test


def letter(id: str, *, error: str = "ValueError", died: datetime = NOON, queue: str = "q") -> Send:
    message = Message(b"body " + id.encode(), id, {SENT_AT: timestamp(NOON - timedelta(days=1)), "own": "x"})
    return dead_letter(queue, message, Failure("processing_error", error, "bad"), 3, died)


async def bury(transport: Transport, ids: Iterable[object]) -> None:
    await transport.send(*(letter(str(id)) for id in ids))


async def ids(transport: Transport, queue: str) -> list[str]:
    return sorted(message.id for message in await transport.peek(queue, limit=10_000))


# What is written on a dead letter.


def test_a_dead_letter_is_the_message_with_the_reason_in_its_headers() -> None:
    message = Message(b"\x00\xff", "a", {"own": "x", SENT_AT: "2026-11-23T12:00:00.000Z"}, "key")
    send = dead_letter("q", message, FAILURE, 3, NOON)
    assert (send.queue, send.delay) == ("q-dlq", 0.0)
    assert (send.message.body, send.message.id, send.message.key) == (b"\x00\xff", "a", "key")
    assert send.message.headers == {
        "own": "x",
        SENT_AT: "2026-11-23T12:00:00.000Z",
        "oncue-dead-reason": "processing_error",
        "oncue-dead-type": "ValueError",
        "oncue-dead-message": "bad",
        "oncue-dead-traceback": "Traceback …",
        "oncue-dead-attempts": "3",
        "oncue-dead-queue": "q",
        "oncue-dead-first": "2026-11-23T12:00:00.000Z",
        "oncue-dead-last": "2026-11-24T12:00:00.000Z",
    }
    assert set(send.message.headers) - {"own", SENT_AT} == DEAD_HEADERS


def test_the_first_time_of_a_message_without_sending_time_is_that_of_its_death() -> None:
    headers = dead_letter("q", Message(b"", "a"), FAILURE, 1, NOON).message.headers
    assert headers[DEAD_FIRST] == headers[DEAD_LAST] == "2026-11-24T12:00:00.000Z"


def test_long_texts_are_cut_the_traceback_at_its_beginning() -> None:
    long = Failure("c", "T" * 999, "é" * 5000, "first " + "x" * 9000 + " last")
    headers = dead_letter("q", Message(b"", "a"), long, 1).message.headers
    assert headers[DEAD_MESSAGE].endswith("é…") and len(headers[DEAD_MESSAGE].encode()) in {2047, 2048}
    assert headers[DEAD_TRACEBACK].startswith("…x") and headers[DEAD_TRACEBACK].endswith(" last")
    assert len(headers[DEAD_TRACEBACK].encode()) == 8192
    assert len(headers["oncue-dead-type"].encode()) <= 256


TEXT = st.text(max_size=30) | st.text(st.characters(categories=("Cs",)), max_size=3) | st.just("€" * 9000)
HEADERS = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)


@given(st.binary(max_size=10), st.text(min_size=1), HEADERS, st.none() | st.text(), TEXT, st.integers(1, 10**6))
def test_every_letter_can_be_written_and_gives_the_message_back(
    body: bytes, id: str, headers: dict[str, str], key: str | None, text: str, attempts: int
) -> None:
    message = Message(body, id, headers, key)
    stored = dead_letter("q", message, Failure(text, text, text, text), attempts, NOON).message
    for name in DEAD_HEADERS:
        assert "\0" not in stored.headers[name] and len(stored.headers[name].encode()) <= 8192
    read = DeadLetter.parse("q-dlq", stored)
    assert read.original == message
    assert (read.id, read.queue, read.attempts, read.last) == (id, "q", attempts, NOON)


_ODD = st.text() | st.sampled_from(
    ["9" * 5000, "-1", "\N{ARABIC-INDIC DIGIT ONE}", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00"]
)


@given(st.dictionaries(st.sampled_from(sorted(DEAD_HEADERS)), _ODD), st.text())
def test_a_foreign_message_is_a_letter_whose_unreadable_fields_are_empty(headers: dict[str, str], queue: str) -> None:
    read = DeadLetter.parse(queue, Message(b"", "a", headers))
    assert read.original == Message(b"", "a")
    assert 0 <= read.attempts < 10**9
    assert read.last is None or read.last.tzinfo is not None


def test_the_queue_of_a_letter_that_does_not_say_is_told_by_where_it_lies() -> None:
    foreign = Message(b"", "a", {DEAD_ATTEMPTS: "many"})
    assert DeadLetter.parse("q-dlq", foreign).queue == "q"
    assert DeadLetter.parse("elsewhere", foreign).queue == ""
    assert DeadLetter.parse("q-dlq", foreign).attempts == 0
    assert (dead_queue_name("q"), is_dead_queue("q-dlq"), is_dead_queue("q"), is_dead_queue("-dlq")) == (
        "q-dlq",
        True,
        False,
        False,
    )


def test_a_filter_means_the_letters_for_which_all_its_conditions_hold() -> None:
    read = DeadLetter.parse("q-dlq", letter("a").message)
    later = NOON + timedelta(seconds=1)
    assert DeadFilter().matches(read) and not DeadFilter()
    for good, bad in (
        ({"ids": frozenset("a")}, {"ids": frozenset("b")}),
        ({"errors": frozenset({"ValueError"})}, {"errors": frozenset({"KeyError"})}),
        ({"died_before": later}, {"died_before": NOON}),
    ):
        assert DeadFilter(**good).matches(read) and DeadFilter(**good)
        assert not DeadFilter(**bad).matches(read)
        assert not DeadFilter(**{"ids": frozenset("a"), "died_before": later, **bad}).matches(read)
    assert not DeadFilter(died_before=later).matches(DeadLetter.parse("q-dlq", Message(b"", "a"))), "too young for any"


# Looking at them.


@on_each_store
async def test_the_list_has_the_oldest_first_and_neither_counts_nor_hides(transport: Transport) -> None:
    await bury(transport, range(5))
    for _ in range(3):
        assert [each.id for each in await list_dead(transport, "q-dlq", limit=3)] == ["0", "1", "2"]
    assert await list_dead(transport, "q-dlq", limit=0) == []
    async with transport.subscribe("q-dlq", prefetch=5) as subscription:
        assert [(await subscription.receive()).attempt for _ in range(5)] == [1] * 5


@on_each_store
async def test_letters_are_found_however_many_others_lie_before_them(transport: Transport) -> None:
    await bury(transport, range(300))
    await transport.send(letter("odd", error="KeyError"), letter("old", died=NOON - timedelta(days=1)))
    await bury(transport, [300])
    found = [each.id for each in await list_dead(transport, "q-dlq", DeadFilter(errors=frozenset({"KeyError"})), 1)]
    assert found == ["odd"]
    assert [each.id for each in await list_dead(transport, "q-dlq", DeadFilter(died_before=NOON))] == ["old"]
    one = await find_dead(transport, "q-dlq", "300")
    assert one is not None and one.original.body == b"body 300"
    assert await find_dead(transport, "q-dlq", "301") is None


@on_each_store
async def test_a_dead_queue_that_is_not_there_is_an_error(transport: Transport) -> None:
    for ask in (list_dead, redrive, discard):
        with pytest.raises(QueueNotFoundError):
            await ask(transport, "none-dlq")


# Putting them back, and destroying them.


@on_each_store
async def test_a_redriven_message_is_as_it_was_first_sent_with_no_attempts_used(transport: Transport) -> None:
    message = Message(b"\x00\xff", "a", {"own": "x", SENT_AT: "2026-11-23T12:00:00.000Z"}, "key")
    await transport.send(dead_letter("q", message, FAILURE, 3))
    async with transport.subscribe("q-dlq", prefetch=1) as subscription:
        await (await subscription.receive()).nack()
    swept = await redrive(transport, "q-dlq")
    assert (swept.count, swept.refused) == (1, {})
    async with transport.subscribe("q", prefetch=1) as subscription:
        lease = await subscription.receive()
    assert (lease.attempt, lease.message) == (1, message)
    assert await ids(transport, "q-dlq") == []


@on_each_store
async def test_only_the_letters_that_are_meant_go_and_the_rest_stays_untouched(transport: Transport) -> None:
    await bury(transport, range(100))
    await transport.send(*(letter(f"odd{number}", error="KeyError") for number in range(3)))
    await transport.send(letter("old", died=NOON - timedelta(days=1)))
    assert (await redrive(transport, "q-dlq", DeadFilter(errors=frozenset({"KeyError"})))).count == 3
    assert (await redrive(transport, "q-dlq", DeadFilter(died_before=NOON))).count == 1
    assert (await redrive(transport, "q-dlq", DeadFilter(ids=frozenset({"99", "none"})))).count == 1
    assert await ids(transport, "q") == ["99", "odd0", "odd1", "odd2", "old"]
    assert [each.id for each in await list_dead(transport, "q-dlq", limit=999)] == [str(n) for n in range(99)]
    async with transport.subscribe("q-dlq", prefetch=99) as subscription:
        assert {(await subscription.receive()).attempt for _ in range(99)} == {1}


@on_each_store
async def test_a_limit_bounds_what_goes_and_the_oldest_go_first(transport: Transport) -> None:
    await bury(transport, range(10))
    assert (await redrive(transport, "q-dlq", limit=0)).count == 0
    assert (await redrive(transport, "q-dlq", limit=4)).count == 4
    assert await ids(transport, "q") == ["0", "1", "2", "3"]
    assert (await discard(transport, "q-dlq", DeadFilter(errors=frozenset({"ValueError"})), limit=2)).count == 2
    assert await ids(transport, "q-dlq") == ["6", "7", "8", "9"]
    assert await ids(transport, "q") == ["0", "1", "2", "3"]


@on_each_store
async def test_discarding_destroys_and_says_how_far_it_is(transport: Transport) -> None:
    await bury(transport, range(150))
    told: list[int] = []
    assert (await discard(transport, "q-dlq", progress=told.append)).count == 150
    assert told == list(range(1, 151))
    assert (await transport.peek("q", limit=1), await transport.peek("q-dlq", limit=1)) == ([], [])
    assert (await discard(transport, "q-dlq", progress=told.append)).count == 0


@on_each_store
async def test_a_letter_whose_queue_is_gone_stays_and_the_others_go(transport: Transport) -> None:
    strange = [letter("b", queue="gone"), letter("c", queue="not a name")]
    await transport.send(letter("a"), *(Send("q-dlq", each.message) for each in strange), letter("d"))
    swept = await redrive(transport, "q-dlq")
    assert swept.count == 2
    assert swept.refused["b"] == "queue 'gone' does not exist"
    assert "expected 1 to 128 letters" in swept.refused["c"]
    assert await ids(transport, "q-dlq") == ["b", "c"]
    assert await ids(transport, "q") == ["a", "d"]


@on_each_store
async def test_many_letters_that_have_to_stay_do_not_stand_in_the_way_of_others(transport: Transport) -> None:
    await transport.send(*(Send("q-dlq", letter(str(number), queue="gone").message) for number in range(200)))
    await bury(transport, range(200, 220))
    swept = await redrive(transport, "q-dlq")
    assert (swept.count, len(swept.refused)) == (20, 200)


@on_each_store
async def test_five_thousand_letters_are_put_back_and_a_few_are_found_among_them(transport: Transport) -> None:
    await bury(transport, range(4990))
    await transport.send(*(letter(f"odd{number}", error="KeyError") for number in range(10)))
    assert (await redrive(transport, "q-dlq", DeadFilter(errors=frozenset({"KeyError"})))).count == 10
    assert (await redrive(transport, "q-dlq")).count == 4990
    assert len(await ids(transport, "q")) == len(set(await ids(transport, "q"))) == 5000
    assert await ids(transport, "q-dlq") == []


@on_each_store
async def test_two_who_redrive_at_once_share_the_letters(transport: Transport) -> None:
    await bury(transport, range(300))
    swept = await asyncio.gather(*(redrive(transport, "q-dlq") for _ in range(3)))
    assert sum(each.count for each in swept) == 300
    assert await ids(transport, "q") == sorted(map(str, range(300)))


@on_each_store
async def test_letters_that_somebody_else_holds_are_not_waited_for(transport: Transport) -> None:
    await bury(transport, range(10))
    async with transport.subscribe("q-dlq", prefetch=4) as subscription:
        held = [await subscription.receive() for _ in range(4)]
        assert (await redrive(transport, "q-dlq")).count == 6
        assert len(held) == 4
    assert len(await ids(transport, "q-dlq")) == 4


def test_a_sweep_that_gives_up_says_that_there_are_more() -> None:
    async def scenario() -> None:
        transport = UnreliableTransport(MemoryTransport(MemoryStore()))
        for queue in ("q", "q-dlq"):
            await transport.declare(QueueSpec(name=queue))
        await bury(transport, range(3))
        transport.receiving.latency = 60.0
        assert await redrive(transport, "q-dlq") == Swept(0, {}, gave_up=True)
        transport.receiving.latency = 0.0
        assert await redrive(transport, "q-dlq") == Swept(3, {})

    run_in_virtual_time(scenario())


@on_each_store
async def test_a_letter_that_dies_again_meanwhile_does_not_go_round(transport: Transport) -> None:
    await bury(transport, range(200))

    async def die_again() -> None:
        async with transport.subscribe("q", prefetch=50) as subscription:
            while True:
                lease = await subscription.receive()
                await lease.ack(dead_letter("q", lease.message, FAILURE, lease.attempt))

    def deaths() -> int:
        return len(told)

    told: list[int] = []
    dying = asyncio.create_task(die_again())
    swept = await redrive(transport, "q-dlq", progress=told.append)
    assert swept.count == deaths() == 200
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    assert len(await ids(transport, "q-dlq")) + len(await ids(transport, "q")) == 200


def test_a_letter_that_died_again_is_not_taken_in_the_place_of_one_that_somebody_else_took() -> None:
    async def scenario() -> None:
        transport = await _memory()
        await bury(transport, range(200))
        seen: Counter[str] = Counter()

        async def die_again() -> None:
            async with transport.subscribe("q", prefetch=50) as subscription:
                while True:
                    lease = await subscription.receive()
                    seen[lease.message.id] += 1
                    await lease.ack(dead_letter("q", lease.message, FAILURE, lease.attempt))

        async def take() -> None:
            async with transport.subscribe("q-dlq", prefetch=100) as subscription:
                for _ in range(50):
                    await subscription.receive()
                await asyncio.sleep(2.0)

        async with asyncio.TaskGroup() as others:
            dying = others.create_task(die_again())
            sweep = others.create_task(redrive(transport, "q-dlq"))
            await asyncio.sleep(0)
            others.create_task(take())
            assert 0 < (await sweep).count < 200
            dying.cancel()
        assert set(seen.values()) == {1}

    run_in_virtual_time(scenario())


async def _memory() -> MemoryTransport:
    transport = MemoryTransport(MemoryStore())
    await transport.declare(QueueSpec(name="q"))
    await transport.declare(QueueSpec(name="q-dlq", lease=3.0))
    return transport


@pytest.mark.parametrize("which", [DeadFilter(), DeadFilter(ids=frozenset(map(str, range(0, 80, 3))))])
def test_a_redrive_that_is_cancelled_at_any_moment_loses_and_doubles_none(which: DeadFilter) -> None:
    async def scenario(steps: int) -> bool:
        transport = await _memory()
        await bury(transport, range(80))
        told = [0]
        sweep = asyncio.create_task(redrive(transport, "q-dlq", which, progress=told.append))
        for _ in range(steps):
            await asyncio.sleep(0)
        ended = sweep.done()
        sweep.cancel()
        await asyncio.gather(sweep, return_exceptions=True)
        there, back = await ids(transport, "q-dlq"), await ids(transport, "q")
        assert sorted(there + back) == sorted(map(str, range(80)))
        assert told[-1] == len(back)
        assert ended or sweep.cancelled()
        async with transport.subscribe("q-dlq", prefetch=100) as subscription:
            assert {(await subscription.receive()).attempt for _ in there} <= {1}
        return ended

    steps = 0
    while not run_in_virtual_time(scenario(steps)):
        steps += 1
    assert steps > 5, "it was cancelled on its way"


@pytest.mark.parametrize("millis", [0, 1, 2, 5, 8, 12, 20, 40])
async def test_a_redrive_on_sqlite_that_is_cancelled_loses_and_doubles_none(millis: int, tmp_path: Path) -> None:
    transport = await open_transport(f"sqlite:///{tmp_path}/q.db")
    await transport.declare(QueueSpec(name="q"))
    await transport.declare(QueueSpec(name="q-dlq"))
    await bury(transport, range(400))
    told = [0]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(millis / 1000):
            await redrive(transport, "q-dlq", progress=told.append)
            raise TimeoutError
    there, back = await ids(transport, "q-dlq"), await ids(transport, "q")
    assert sorted(there + back) == sorted(map(str, range(400)))
    assert told[-1] == len(back)
    assert (await redrive(transport, "q-dlq")).count == len(there)
    await transport.close()


@pytest.mark.parametrize(("lag", "heard"), [(2.0, 64), (60.0, 0)])
def test_a_sweep_that_is_cancelled_hears_what_became_of_what_was_under_way_if_it_comes_soon(
    lag: float, heard: int
) -> None:
    async def scenario() -> None:
        transport = UnreliableTransport(await _memory())
        await bury(transport, range(100))
        transport.settling.lag = lag
        told, began = [0], asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await redrive(transport, "q-dlq", progress=told.append)
        assert (told[-1], len(await ids(transport, "q"))) == (heard, 64)
        assert asyncio.get_running_loop().time() - began < 7.0

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("where", ["settling", "receiving"])
@pytest.mark.parametrize("error", [ConnectionLostError("away"), AccessDeniedError("no")])
@pytest.mark.parametrize("done", [False, True])
def test_a_redrive_that_meets_an_error_ends_with_it_and_loses_none(where: str, error: Exception, done: bool) -> None:
    async def scenario() -> None:
        inner = await _memory()
        transport = UnreliableTransport(inner)
        await bury(transport, range(100))
        faults = getattr(transport, where)
        faults.plan.extend([None] * 30)
        faults.add(error, done=done and where == "settling")
        with pytest.raises(type(error), match=str(error)):
            await redrive(transport, "q-dlq")
        assert sorted(await ids(inner, "q-dlq") + await ids(inner, "q")) == sorted(map(str, range(100)))
        await redrive(transport, "q-dlq")
        assert len(await ids(inner, "q")) == 100

    run_in_virtual_time(scenario())


def test_a_letter_whose_lease_was_lost_is_left_to_another_pass() -> None:
    async def scenario() -> None:
        inner = await _memory()
        transport = UnreliableTransport(inner)
        await bury(transport, range(10))
        transport.settling.add(LeaseLostError("q-dlq", "0"))
        assert (await redrive(transport, "q-dlq")).count == 9
        assert (await redrive(transport, "q-dlq")).count == 1

    run_in_virtual_time(scenario())


def test_what_is_passed_over_is_held_without_its_lease_running_out_however_slow_the_rest_is() -> None:
    async def scenario() -> None:
        inner = await _memory()
        transport = UnreliableTransport(inner)
        transport.settling.latency = 2.5  # of leases of 3 seconds
        await bury(transport, range(400))
        meant = frozenset(map(str, range(1, 400, 2)))
        assert (await redrive(transport, "q-dlq", DeadFilter(ids=meant))).count == 200
        async with inner.subscribe("q-dlq", prefetch=200) as subscription:
            assert {(await subscription.receive()).attempt for _ in range(200)} == {1}

    run_in_virtual_time(scenario())


def test_letters_whose_sweeps_were_killed_twice_do_not_stand_in_the_way_of_each_other() -> None:
    async def scenario() -> None:
        transport = await _memory()
        await bury(transport, range(20))
        await transport.send(Send("q-dlq", letter("strange", queue="gone").message))
        for _ in range(2):
            async with transport.subscribe("q-dlq", prefetch=21) as subscription:
                for _ in range(21):
                    await subscription.receive()
                await asyncio.sleep(4.0)
        started = asyncio.get_running_loop().time()
        assert (await redrive(transport, "q-dlq", DeadFilter(ids=frozenset({"5", "strange", "19"})))).count == 2
        assert asyncio.get_running_loop().time() - started < 2.0
        assert sorted(await ids(transport, "q-dlq") + await ids(transport, "q")) == sorted(
            [*map(str, range(20)), "strange"]
        )
        await asyncio.sleep(3.0)
        assert (await redrive(transport, "q-dlq")).count == 18

    run_in_virtual_time(scenario())


def test_a_transport_that_cannot_count_is_swept_to_its_end() -> None:
    async def scenario() -> None:
        inner = await _memory()
        transport = UnreliableTransport(inner, blind=True)
        await bury(transport, range(200))
        assert (await redrive(transport, "q-dlq", DeadFilter(ids=frozenset({"150", "199"})))).count == 2
        assert (await redrive(transport, "q-dlq")).count == 198

    run_in_virtual_time(scenario())


def test_a_letter_over_the_limit_of_the_transport_stays_with_the_reason() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        whole = MemoryTransport(store)
        narrow = MemoryTransport(store, msgspec.structs.replace(FEATURES, max_body=10))
        for queue in ("q", "q-dlq"):
            await whole.declare(QueueSpec(name=queue))
        await bury(whole, ["1", "far too long", "2"])
        swept = await redrive(narrow, "q-dlq")
        assert swept.count == 2
        assert swept.refused == {"far too long": "a message of 17 bytes for queue 'q' is over the limit of 10 bytes"}
        assert await ids(whole, "q-dlq") == ["far too long"]

    run_in_virtual_time(scenario())


def test_a_dead_queue_that_is_deleted_meanwhile_is_that_error() -> None:
    async def scenario() -> None:
        inner = await _memory()
        await bury(inner, range(200))

        def progress(count: int) -> None:
            if count == 100:
                inner.store.queues.pop("q-dlq").delete()

        with pytest.raises(QueueNotFoundError):
            await redrive(inner, "q-dlq", progress=progress)
        assert len(await ids(inner, "q")) == 100

    run_in_virtual_time(scenario())
