"""Time limits: who is cancelled, who cannot be, and that cancelling the worker is never mistaken for either."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workloads.calling import workload_of

import oncue
from oncue.core.failure import TIMEOUT_ERROR
from oncue.core.outcome import Retry
from oncue.testing import run_in_virtual_time
from oncue.workloads import threads
from oncue.workloads.threads import Job, Threads


async def hangs(_payload: Any) -> None:
    await asyncio.Event().wait()


async def refuses_once(_payload: Any) -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        return "too late"
    return "in time"


def check_timeout(answer: Any) -> None:
    assert isinstance(answer, Retry)
    assert answer.failure.code == TIMEOUT_ERROR
    assert answer.failure.type == "TimeoutError"
    assert answer.failure.message == "not finished within 3s"


@pytest.mark.parametrize("function", [hangs, refuses_once])
def test_an_async_handler_is_cancelled_at_its_timeout(function: Callable[..., Any]) -> None:
    async def main() -> None:
        async with workload_of(function, timeout=3) as call:
            check_timeout(await call())
            assert asyncio.get_running_loop().time() == pytest.approx(3)

    run_in_virtual_time(main)


def test_the_failure_shows_where_the_handler_was() -> None:
    async def main() -> None:
        async with workload_of(hangs, timeout=3) as call:
            assert "await asyncio.Event().wait()" in (await call()).failure.traceback

    run_in_virtual_time(main)


def test_an_async_handler_that_will_not_be_cancelled_is_left_behind_and_counted() -> None:
    async def main() -> None:
        enough = asyncio.Event()

        async def works_on(_payload: Any) -> None:
            while not enough.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await enough.wait()

        told: list[int] = []
        async with workload_of(works_on, timeout=3, abandoned=told.append) as call:
            check_timeout(await call())
            assert asyncio.get_running_loop().time() == pytest.approx(6)
            check_timeout(await call())
            assert told == [1, 2]
            enough.set()

    run_in_virtual_time(main)


def test_a_handler_that_ends_in_time_is_not_touched_by_its_timeout() -> None:
    async def sleeps(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def main() -> None:
        async with workload_of(sleeps, timeout=3) as call:
            assert await call(2.9) == 2.9
            await asyncio.sleep(10)
            assert await call(2.9) == 2.9

    run_in_virtual_time(main)


def test_a_handlers_own_timeout_error_is_its_own() -> None:
    async def gives_up(_payload: Any) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(2)

    async def main() -> None:
        async with workload_of(gives_up, timeout=3) as call:
            answer = await call()
            assert answer.failure.code != TIMEOUT_ERROR
            assert answer.failure.type == "TimeoutError"

    run_in_virtual_time(main)


@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_cancelling_the_caller_cancels_an_async_handler_and_is_passed_on(timeout: float | None) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waits(_payload: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with workload_of(waits, timeout=timeout) as call:
        task = asyncio.create_task(call())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()


@pytest.fixture
def hang() -> Iterator[tuple[threading.Event, Callable[..., Any]]]:
    """An event that ends, and a handler that hangs until then; its attribute `begun` is set once it does."""
    free = threading.Event()

    def hangs_in_thread(payload: Any) -> Any:
        if payload == "hang":
            hangs_in_thread.begun.set()
            free.wait(30)
        return payload

    hangs_in_thread.begun = threading.Event()
    yield free, hangs_in_thread
    free.set()


async def test_a_thread_cannot_be_cancelled_but_its_attempt_fails_in_time(hang: Any) -> None:
    _, handler = hang
    told: list[int] = []
    async with workload_of(handler, timeout=0.05, threads=1, abandoned=told.append) as call:
        answer = await call("hang")
        assert answer.failure.code == TIMEOUT_ERROR
        assert "free.wait(30)" in answer.failure.traceback
        assert str(Path(oncue.__file__).parent) not in answer.failure.traceback
        assert told == [1]
        assert await call("next") == "next", "the abandoned thread has been replaced"
        await call("hang")
        assert told == [1, 2]


@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_cancelling_the_caller_leaves_a_thread_behind_and_is_passed_on(hang: Any, timeout: float | None) -> None:
    _, handler = hang
    told: list[int] = []
    async with workload_of(handler, timeout=timeout, threads=1, abandoned=told.append) as call:
        task = asyncio.create_task(call("hang"))
        await asyncio.to_thread(handler.begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told == [1]
        assert await call("next") == "next"


async def test_the_time_spent_waiting_for_a_thread_does_not_count(hang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MOST_ABANDONED", 0)
    free, handler = hang
    async with workload_of(handler, timeout=0.05, threads=1) as call:
        assert (await call("hang")).failure.code == TIMEOUT_ERROR
        waiting = asyncio.create_task(call("next"))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "no thread is free, and the message must not suffer for it"
        free.set()
        assert await waiting == "next"


def test_threads_are_bounded_however_many_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MOST_ABANDONED", 2)
    pool, free, begun = Threads(2, "bounded"), threading.Event(), threading.Semaphore(0)

    def hangs() -> None:
        begun.release()
        free.wait(30)

    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("bounded")]

    jobs = [Job(hangs) for _ in range(6)]
    for job in jobs:
        pool.submit(job)
    for job in jobs[:4]:
        assert begun.acquire(timeout=10)
        if job in jobs[:2]:
            begun_first = [job for job in jobs if job.began is not None and not job.abandoned]
            assert pool.abandon(begun_first[0])
    assert len(names()) == 4
    assert not pool.abandon(jobs[5]), "it does not run"
    free.set()
    for job in jobs:
        job.future.result(10)
    assert pool.abandoned == 0
    pool.shutdown()
    for thread in threading.enumerate():
        if thread.name.startswith("bounded"):
            thread.join(10)
    with pytest.raises(RuntimeError, match="ended"):
        pool.submit(hangs)


def test_a_program_ends_though_a_thread_hangs() -> None:
    code = (
        "import threading\nfrom oncue.workloads.threads import Job, Threads\n"
        "job = Job(threading.Event().wait)\nThreads(1, 'x').submit(job)\n"
        "while job.began is None: pass\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
