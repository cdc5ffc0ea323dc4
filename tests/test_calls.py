"""Calls: the result of a route, or why there is none; and the reply queues that come and go for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue import App, Retry
from oncue.calls import FRESH, REPLY_QUEUE, STALE, Replies, _Tree, made_at
from oncue.core.errors import (
    AccessDeniedError,
    ActorFailedError,
    CallTimeoutError,
    InvalidValueError,
    TransportClosedError,
    UnknownActorError,
)
from oncue.core.message import Message, Send
from oncue.testing import run_in_virtual_time
from oncue.transports.base import QueueSpec
from oncue.transports.memory import MemoryStore, MemoryTransport


def calling_app() -> App:
    app = App("memory:")

    @app.actor
    async def echo(payload: Any) -> Any:
        return payload

    @app.actor
    async def fan(count: int) -> list[int]:
        return list(range(count))

    @app.actor
    async def twice(number: int) -> list[int]:
        return [10 * number, 10 * number + 1]

    @app.actor
    async def odd_only(number: int) -> int | None:
        return number if number % 2 else None

    @app.actor(retry=Retry(max_attempts=2, base=1, jitter=0))
    async def fail(payload: Any) -> None:
        raise LookupError("not there")

    @app.actor(retry=Retry(max_attempts=1))
    async def fail_on_1(number: int) -> int:
        if number == 1:
            raise LookupError("not there")
        await asyncio.sleep(100)
        return number

    @app.actor
    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return app


@asynccontextmanager
async def at_work(app: App) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(MemoryStore())
    async with app.connected(transport), app.working():
        yield transport
    await transport.close()


def in_a_working_app(main: Callable[[App, MemoryTransport], Any]) -> Any:
    """Run `main` with an app and its transport in virtual time."""

    async def run() -> Any:
        app = calling_app()
        async with at_work(app) as transport:
            return await main(app, transport)

    return run_in_virtual_time(run)


async def reply_queues(transport: MemoryTransport) -> list[str]:
    return [spec.name for spec in await transport.queues() if spec.name.startswith(REPLY_QUEUE)]


@pytest.mark.parametrize(
    ("actor", "payload", "route", "result"),
    [
        ("echo", {"a": [None]}, [], {"a": [None]}),
        ("echo", None, ["fail"], None),
        ("echo", [[1, 2]], [], [[1, 2]]),
        ("echo", 5, ["echo", "echo"], 5),
        ("fan", 3, ["echo"], [0, 1, 2]),
        ("fan", 1, ["echo"], [0]),
        ("fan", 0, ["echo"], None),
        ("fan", 3, ["twice", "twice"], [0, 1, 10, 11, 100, 101, 110, 111, 200, 201, 210, 211]),
        ("fan", 4, ["odd_only", "twice"], [None, 10, 11, None, 30, 31]),
    ],
)
def test_a_call_returns_the_end_of_the_route(actor: str, payload: Any, route: list[str], result: Any) -> None:
    async def main(app: App, _transport: MemoryTransport) -> None:
        assert await app.call(actor, payload, route=route) == result

    in_a_working_app(main)


def test_a_failure_is_raised_when_its_actor_gives_up() -> None:
    async def main(app: App, _transport: MemoryTransport) -> None:
        with pytest.raises(ActorFailedError, match="'fail' failed: LookupError: not there") as caught:
            await app.call("echo", 1, route=["fail"], timeout=60)
        assert caught.value.actor == "fail"
        assert caught.value.failure.code == "processing_error"
        assert "raise LookupError" in caught.value.failure.traceback
        assert asyncio.get_running_loop().time() < 2

    in_a_working_app(main)


def test_one_failed_branch_is_raised_at_once() -> None:
    async def main(app: App, _transport: MemoryTransport) -> None:
        with pytest.raises(ActorFailedError):
            await app.call("fan", 3, route=["fail_on_1"])
        assert asyncio.get_running_loop().time() < 50

    in_a_working_app(main)


def test_a_result_that_does_not_come_in_time_is_a_timeout_and_the_work_goes_on() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        with pytest.raises(CallTimeoutError, match=r"no result of actor 'slow' for message 'm' within 2s") as caught:
            await app.call("slow", 5, timeout=2, id="m")
        assert isinstance(caught.value, TimeoutError)
        assert asyncio.get_running_loop().time() == pytest.approx(2)
        assert (await transport.depth("asya-slow")).leased == 1
        await asyncio.sleep(4)
        assert (await transport.depth("asya-slow")).leased == 0
        assert await app.call("slow", 1, timeout=2) == 1, "the late reply disturbs nobody"

    in_a_working_app(main)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_bad_timeout_is_refused(timeout: float) -> None:
    async def main(app: App, _transport: MemoryTransport) -> None:
        with pytest.raises(InvalidValueError):
            await app.call("echo", 1, timeout=timeout)

    in_a_working_app(main)


def test_many_calls_at_once_each_get_their_own_result() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        numbers = range(300)
        assert await asyncio.gather(*(app.call("echo", number, id="same") for number in numbers)) == list(numbers)
        assert len(await reply_queues(transport)) == 1

    in_a_working_app(main)


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        call = asyncio.create_task(app.call("slow", 5))
        await asyncio.sleep(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(10)
        (queue,) = await reply_queues(transport)
        depth = await transport.depth(queue)
        assert (depth.ready, depth.leased) == (0, 0)

    in_a_working_app(main)


# Reply queues


def test_a_reply_queue_is_made_at_the_first_call_and_deleted_with_the_connection() -> None:
    async def run() -> None:
        app = calling_app()
        transport = MemoryTransport(MemoryStore())
        async with app.connected(transport), app.working():
            await app.send("echo", 1)
            assert await reply_queues(transport) == []
            await app.call("echo", 1)
            (queue,) = await reply_queues(transport)
            (spec,) = [spec for spec in await transport.queues() if spec.name == queue]
            assert spec.retention == 3600
        assert await reply_queues(transport) == []

    run_in_virtual_time(run)


def test_a_reply_queue_that_somebody_deletes_is_made_again() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        await app.call("echo", 1)
        (queue,) = await reply_queues(transport)
        await transport.delete(queue)
        await asyncio.sleep(1)
        assert await app.call("echo", 2, timeout=5) == 2
        assert await reply_queues(transport) == [queue]

    in_a_working_app(main)


class Denying(MemoryTransport):
    """A transport that refuses everything of reply queues for a while."""

    denies = False

    def subscribe(self, queue: str, *, prefetch: int) -> Any:
        if self.denies and queue.startswith(REPLY_QUEUE):
            raise AccessDeniedError("not for you")
        return super().subscribe(queue, prefetch=prefetch)


def test_a_call_whose_reply_queue_may_not_be_read_fails_at_once_and_later_ones_try_anew() -> None:
    async def run() -> None:
        app, transport = calling_app(), Denying(MemoryStore())
        async with app.connected(transport), app.working():
            transport.denies = True
            with pytest.raises(AccessDeniedError):
                await app.call("slow", 1)
            transport.denies = False
            assert await app.call("echo", 1, timeout=5) == 1

    run_in_virtual_time(run)


def test_a_message_whose_caller_is_gone_is_done_all_the_same() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        await app.send("echo", 1, headers={"reply-to": "oncue-reply-gone", "oncue-call": "1"})
        await app.send("fail", 1, headers={"reply-to": "oncue-reply-gone", "oncue-call": "1"})
        await app.send("echo", 1, headers={"reply-to": "no queue name"})
        await app.send("echo", 1, headers={"reply-to": 5})
        await asyncio.sleep(60)
        for actor in "echo", "fail":
            depth = await transport.depth(f"asya-{actor}")
            assert (depth.ready, depth.leased, depth.delayed) == (0, 0, 0)
        assert await transport.peek("asya-echo-dlq", limit=1) == []
        assert len(await transport.peek("asya-fail-dlq", limit=5)) == 1

    in_a_working_app(main)


def test_queues_of_dead_programs_are_swept_after_a_day() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        now = int(time.time())
        old, young = f"{REPLY_QUEUE}{now - 86401:x}-aa", f"{REPLY_QUEUE}{now - 86000:x}-bb"
        for name in (old, young, "oncue-reply-xyz"):
            await transport.declare(QueueSpec(name=name))
        await app.call("echo", 1)
        kept = await reply_queues(transport)
        assert old not in kept
        assert {young, "oncue-reply-xyz"} < set(kept)

    in_a_working_app(main)


def test_a_program_that_lives_long_changes_to_a_new_queue_and_loses_no_call_over_it() -> None:
    async def run() -> None:
        transport = MemoryTransport(MemoryStore())
        await transport.declare(QueueSpec(name="work"))
        now = 1e9
        replies = Replies(transport, clock=lambda: now)
        sent: list[Message] = []

        async def deliver(send: Send) -> None:
            sent.append(send.message)

        def call() -> asyncio.Task[Any]:
            body = json.dumps({"id": "m", "route": {"actors": ["work"]}, "payload": len(sent)}).encode()
            return asyncio.create_task(replies.call(Send("work", Message(body, "m")), deliver, "work", None))

        async def answer(message: Message) -> None:
            await transport.send(Send(json.loads(message.body)["headers"]["reply-to"], message))

        first = call()
        await asyncio.sleep(1)
        now += FRESH
        second = call()
        await asyncio.sleep(1)
        queues = await reply_queues(transport)
        assert [made_at(queue) for queue in sorted(queues)] == [1e9, 1e9 + FRESH]
        await answer(sent[0])
        await answer(sent[1])
        assert [await first, await second] == [0, 1]
        third = call()
        await asyncio.sleep(1)
        assert [made_at(queue) for queue in await reply_queues(transport)] == [1e9 + FRESH]
        await answer(sent[2])
        await third
        await replies.close()
        await replies.close()
        assert await reply_queues(transport) == []

    run_in_virtual_time(run)
    assert FRESH < STALE / 2


def test_calls_that_wait_when_the_app_is_left_end_with_an_error() -> None:
    async def run() -> None:
        app = calling_app()
        async with app:
            call = asyncio.create_task(app.call("slow", 5))
            await asyncio.sleep(1)
        with pytest.raises(TransportClosedError):
            await call

    run_in_virtual_time(run)


def test_a_call_to_an_unknown_actor_fails_at_once() -> None:
    async def main(app: App, _transport: MemoryTransport) -> None:
        with pytest.raises(UnknownActorError, match="did you mean 'echo'"):
            await app.call("ecko", 1)

    in_a_working_app(main)


def test_what_is_no_reply_disturbs_nobody() -> None:
    async def main(app: App, transport: MemoryTransport) -> None:
        await app.call("echo", 1)
        (queue,) = await reply_queues(transport)
        for body in (b"", b"{}", b'{"id": "m", "route": {}, "headers": {"oncue-call": "77"}}'):
            await transport.send(Send(queue, Message(body, "m")))
        assert await app.call("echo", 2) == 2
        await asyncio.sleep(1)
        depth = await transport.depth(queue)
        assert (depth.ready, depth.leased) == (0, 0)

    in_a_working_app(main)


# Trees


def tree(depth: int) -> st.SearchStrategy[Any]:
    """A tree as nested lists, its leaves numbers."""
    leaf = st.integers()
    return leaf if depth == 0 else leaf | st.lists(tree(depth - 1), min_size=1, max_size=4)


def leaves_of(node: Any, place: tuple[tuple[int, int], ...] = ()) -> list[tuple[tuple[tuple[int, int], ...], int]]:
    if not isinstance(node, list):
        return [(place, node)]
    return [leaf for index, child in enumerate(node) for leaf in leaves_of(child, (*place, (index, len(node))))]


@given(tree(3), st.randoms(use_true_random=False))
def test_branches_make_the_tree_in_any_order_and_however_often_they_come(root: Any, random: Any) -> None:
    leaves = leaves_of(root)
    arriving = leaves + random.choices(leaves, k=len(leaves))
    random.shuffle(arriving)
    found, seen = _Tree(), set()
    for place, value in arriving:
        seen.add(place)
        assert found.put(place, value) == (len(seen) == len(leaves))
    expected = [value for _, value in leaves]
    assert found.value() == (expected if isinstance(root, list) else expected[0])


def test_a_branch_that_contradicts_the_first_changes_nothing() -> None:
    found = _Tree()
    assert not found.put([(0, 2)], "a")
    assert not found.put([(0, 3)], "b")
    assert not found.put([(0, 2), (0, 1)], "c")
    assert not found.put([], "d")
    assert found.put([(1, 2)], "e")
    assert found.value() == ["a", "e"]


def test_only_reply_queues_have_an_age() -> None:
    assert made_at("oncue-reply-ff-aa") == 255
    assert made_at("asya-greet") is None
    assert made_at("oncue-reply-zz-aa") is None
