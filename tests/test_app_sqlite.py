"""Apps on an SQLite file: across restarts, across processes, in order, and stopped in the middle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import oncue
from oncue import App, Context, Retry, Stop
from oncue.dead import list_dead
from oncue.events import HandlerAbandoned
from oncue.transports import open_transport
from oncue.transports.base import Depth, Transport


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Transport]:
    transport = await open_transport(url)
    try:
        yield transport
    finally:
        await transport.close()


async def test_what_one_app_sent_another_works_on_later(url: str) -> None:
    sender = App(url)
    sender.actor(name="collect")(lambda payload: payload)
    async with sender:
        await sender.send_many("collect", range(200))
        await sender.send("collect", 200)

    worker, seen, all_seen = App(url), [], asyncio.Event()

    @worker.actor
    async def collect(number: int) -> None:
        seen.append(number)
        if len(seen) == 201:
            all_seen.set()

    async with worker.working():
        await all_seen.wait()
    assert sorted(seen) == list(range(201))
    async with opened(url) as transport:
        assert await transport.depth("asya-collect") == Depth(0, 0, 0)


async def test_calls_reach_a_worker_in_another_process(url: str) -> None:
    program = f"""
import asyncio, sys
from oncue import App
app = App({url!r})

@app.actor
def square(number: int) -> list[int]:
    return [number, number ** 2]

@app.actor
async def negate(number: int) -> int:
    return -number

async def main():
    async with app.working():
        print("at work", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"at work\n"
    app = App(url)
    async with app:
        results = await asyncio.gather(
            *(app.call("square", number, route=["negate"], timeout=30) for number in range(20))
        )
    assert results == [[-number, -(number**2)] for number in range(20)]
    await worker.communicate(b"")
    assert worker.returncode == 0


async def test_a_failing_handler_is_tried_again_and_then_set_aside_whole(url: str) -> None:
    app, attempts, dead = App(url), [], asyncio.Event()

    @app.actor(retry=Retry(max_attempts=3, base=0.01))
    def fails(payload: Any, context: Context) -> None:
        attempts.append((context.attempt, context.last_attempt))
        raise LookupError("not there")

    app.events.subscribe(lambda event: dead.set() if event.name == "message.dead" else None)
    async with app.working():
        await app.send("fails", {"n": 1}, id="m", headers={"a": 1})
        await dead.wait()
    assert attempts == [(1, False), (2, False), (3, True)]
    async with opened(url) as transport:
        (letter,) = await list_dead(transport, "asya-fails-dlq")
        assert (letter.id, letter.type, letter.message, letter.attempts) == ("m", "LookupError", "not there", 3)
        assert b'"payload":{"n":1}' in letter.original.body
        assert str(Path(oncue.__file__).parent) not in letter.traceback


async def test_messages_of_one_key_are_handled_in_order_and_one_at_a_time(url: str) -> None:
    app, seen, busy = App(url), [], set()
    all_seen = asyncio.Event()

    @app.actor(fifo=True, concurrency=20)
    async def in_order(job: tuple[str, int]) -> None:
        key, number = job
        assert key not in busy
        busy.add(key)
        await asyncio.sleep(0)
        busy.remove(key)
        seen.append((key, number))
        if len(seen) == 60:
            all_seen.set()

    async with app:
        for number in range(20):
            for key in "abc":
                await app.send("in_order", (key, number), key=key)
        async with app.working():
            await all_seen.wait()
    for key in "abc":
        assert [number for found, number in seen if found == key] == list(range(20))


async def test_what_is_in_flight_finishes_while_the_grace_lasts_and_the_rest_is_given_back_uncounted(url: str) -> None:
    app, begun = App(url), asyncio.Semaphore(0)
    quick_may_end, attempts = asyncio.Event(), []

    @app.actor
    async def quick(_payload: Any) -> None:
        begun.release()
        await quick_may_end.wait()

    @app.actor
    async def endless(_payload: Any, context: Context) -> None:
        attempts.append(context.attempt)
        begun.release()
        await asyncio.Event().wait()

    for _ in range(2):
        quick_may_end.clear()
        async with app:
            stop = Stop()
            work = asyncio.create_task(app.work(stop))
            await app.send("quick", 1)
            if not attempts:
                await app.send("endless", 1)
            await begun.acquire()
            await begun.acquire()
            stop.gently(0.2)
            quick_may_end.set()
            await work
    assert attempts == [1, 1]
    async with opened(url) as transport:
        assert await transport.depth("asya-quick") == Depth(0, 0, 0)
        assert await transport.depth("asya-endless") == Depth(1, 0, 0)


async def test_stopping_at_once_leaves_a_thread_behind_and_gives_its_message_back(url: str) -> None:
    app, begun, free, counts = App(url), threading.Event(), threading.Event(), []

    @app.actor
    def hangs(_payload: Any, context: Context) -> None:
        context.send("hangs", "never sent")
        begun.set()
        free.wait(30)

    app.events.subscribe(lambda event: counts.append(event.abandoned) if isinstance(event, HandlerAbandoned) else None)
    async with app:
        stop = Stop()
        work = asyncio.create_task(app.work(stop))
        await app.send("hangs", 1)
        await asyncio.to_thread(begun.wait, 30)
        stop.now()
        await work
    free.set()
    assert counts == [1]
    async with opened(url) as transport:
        assert await transport.depth("asya-hangs") == Depth(1, 0, 0)


async def test_many_threads_and_much_at_once(url: str) -> None:
    app, lock, seen = App(url), threading.Lock(), []

    @app.actor(concurrency=8)
    def double(number: int) -> int:
        with lock:
            seen.append(number)
        return 2 * number

    async with app.working():
        results = await asyncio.gather(*(app.call("double", number, timeout=50) for number in range(200)))
    assert results == [2 * number for number in range(200)]
    assert sorted(seen) == list(range(200))
