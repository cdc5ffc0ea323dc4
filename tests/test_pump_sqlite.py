"""The pump on a real store in real time: the same promises, in short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pumping import Place, Work, leaving_nothing, numbered

from oncue.core.failure import PROCESSING_ERROR, Failure
from oncue.core.message import Message
from oncue.core.outcome import Dead, Done, Outcome, Retry
from oncue.events import BrokerBack, LeaseLost, MessageDead, MessageDone, MessageReleased
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec


@asynccontextmanager
async def opened(folder: Path, *, lease: float = 60.0) -> AsyncIterator[Place]:
    transport = await open_transport(f"sqlite:///{folder / 'jobs.db'}")
    try:
        await transport.declare(QueueSpec(name="q", lease=lease))
        await transport.declare(QueueSpec(name="q-dlq"))
        yield Place(transport)
    finally:
        await transport.close()


@pytest.mark.parametrize("concurrency", [1, 50])
async def test_each_message_comes_to_its_end(tmp_path: Path, concurrency: int) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as world:
            await world.send(*numbered(500), "again", "dead")
            calls: list[tuple[str, int]] = []

            async def handler(message: Message, attempt: int) -> Outcome:
                calls.append((message.id, attempt))
                failure = Failure(PROCESSING_ERROR, "E", "e")
                if message.id == "dead":
                    return Dead(failure)
                return Retry(failure, 0.01) if message.id == "again" and attempt == 1 else Done()

            async with world.running(world.pump(handler, concurrency=concurrency)):
                await world.heard.wait(MessageDone, 501)
                await world.heard.wait(MessageDead)
            assert sorted(calls) == sorted(
                [*((id, 1) for id in numbered(500)), ("again", 1), ("again", 2), ("dead", 1)]
            )
            assert await world.depth() == (0, 0, 0)
            assert await world.ids("q-dlq") == ["dead"]

    await leaving_nothing(scenario())


async def test_a_handler_of_several_leases_gets_its_message_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, lease=1.2) as world:
            await world.send("a")
            work = Work(3.0)
            async with world.running(world.pump(work, lease=1.2)):
                await world.heard.wait(MessageDone)
            assert work.calls == [("a", 1)]
            assert not world.heard.of(LeaseLost)

    await leaving_nothing(scenario())


async def test_stopped_or_cancelled_it_gives_everything_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as world:
            await world.send(*numbered(200))
            for cancelled in (True, False):
                here = Place(world.transport)
                work = Work(held=True)
                task = asyncio.create_task(here.pump(work, concurrency=3).run(here.stop))
                await work.began(3)
                if cancelled:
                    task.cancel()
                else:
                    here.stop.gently(0.05)
                await asyncio.wait([task])
                assert task.cancelled() == cancelled
                assert len(here.heard.of(MessageReleased)) == 3
                assert await here.depth() == (200, 0, 0)
            assert set((await world.attempts(200)).values()) == {1}

    await leaving_nothing(scenario())


async def test_a_second_pump_gets_what_a_slow_handler_of_the_first_would_keep_waiting(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as world, opened(tmp_path) as other:
            await world.send(*numbered(300))
            quick, first = 0, asyncio.Event()

            async def first_quick_then_slow(_message: Message, _attempt: int) -> Outcome:
                nonlocal quick
                quick += 1
                if quick > 200:
                    first.set()
                    await asyncio.Event().wait()
                return Done()

            work = Work()
            async with world.running(world.pump(first_quick_then_slow)):
                await first.wait()
                before = time.monotonic()
                async with other.running(other.pump(work, concurrency=5)):
                    await other.heard.wait(MessageDone, 99)
                assert time.monotonic() - before < 10.0
                assert {attempt for _, attempt in work.calls} == {1}

    await leaving_nothing(scenario())


async def test_a_queue_that_is_deleted_underneath_is_made_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as world:
            await world.send("a")
            async with world.running(world.pump(Work(), concurrency=3)):
                await world.heard.wait(MessageDone)
                await world.transport.delete("q")
                while not [spec for spec in await world.transport.queues() if spec.name == "q"]:
                    await asyncio.sleep(0.01)
                await world.send("b")
                await world.heard.wait(MessageDone, 2)
                await world.heard.wait(BrokerBack)

    await leaving_nothing(scenario())
