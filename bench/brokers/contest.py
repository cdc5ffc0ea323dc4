"""One part of the contest in a process of its own: `python -m bench.brokers.contest MODULE URL PART JOBS [MODE or CHOICE]`.

A contender is a module with `sender(url, mode)`, whose block gives `Calls`, and `worker(url, add, choice)`, which runs a worker
in this process for the length of its block, whose handler calls `add` with the job's number. Both are `with` or `async with`
blocks, and make what queues they need. `enqueue` and `drain` are measured; `receive` and `pace` are the two ends of the way of
lone messages. Prints what it found as a line of JSON; exits with 1 if a job was lost or invented.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any, NamedTuple

import uvloop

from bench.contest import Stopwatch, tell
from bench.tally import AFTERMATH, Tally

SENDERS = 500
"""How many coroutines await their sends at the same time, unless a contender is faster with another number."""
THREADS = 4
BATCH = 1000
"""How many jobs one call for many gets."""
PACE = 50
"""Lone messages a second."""
SEVERAL = ("concurrent", "one by one", "threads")
"""What a mode begins with that sends one job at a call; all others send many."""


class Calls(NamedTuple):
    """How one job is sent, and how many are, where there is a way: in either case, when it returns, as safely as it ever is."""

    one: Callable[[int], Any]
    many: Callable[[Sequence[int]], Any] | None = None


def batches(jobs: int) -> Iterator[range]:
    return (range(first, min(first + BATCH, jobs)) for first in range(0, jobs, BATCH))


# Enqueueing


def enqueue(contender: ModuleType, url: str, jobs: int, mode: str) -> Stopwatch:
    block = contender.sender(url, mode)
    if isinstance(block, AbstractAsyncContextManager):
        return uvloop.run(_enqueue(block, jobs, mode, getattr(contender, "SENDERS", SENDERS)))
    with block as calls, Stopwatch() as watch:
        if mode.startswith("threads"):
            numbers = iter(range(jobs))
            with ThreadPoolExecutor(THREADS) as pool:
                for done in [pool.submit(_send_each, calls.one, numbers) for _ in range(THREADS)]:
                    done.result()
        elif mode.startswith(SEVERAL):
            _send_each(calls.one, range(jobs))
        else:
            for batch in batches(jobs):
                calls.many(batch)
    return watch


def _send_each(send: Callable[[int], object], numbers: Iterator[int] | range) -> None:
    for number in numbers:
        send(number)


async def _enqueue(block: AbstractAsyncContextManager[Calls], jobs: int, mode: str, senders: int) -> Stopwatch:
    async with block as calls:
        with Stopwatch() as watch:
            if mode.startswith(SEVERAL):
                await _send_at_once(calls.one, jobs, senders if mode.startswith("concurrent") else 1)
            else:
                assert calls.many is not None
                for batch in batches(jobs):
                    await calls.many(batch)
    return watch


async def _send_at_once(send: Callable[[int], Awaitable[object]], jobs: int, senders: int) -> None:
    numbers = iter(range(jobs))

    async def sender() -> None:
        for number in numbers:
            await send(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(senders):
            group.create_task(sender())


# Draining


def drain(contender: ModuleType, url: str, jobs: int, *choice: str) -> Stopwatch:
    """The clock runs from the first handler's call to the last one: what a worker needs to start is another matter."""
    tally = Tally(jobs)
    watch = Stopwatch()

    def add(number: int) -> None:
        if not watch.running:
            watch.start()
        tally.add(number)

    def done() -> None:
        tally.wait()
        watch.stop(tally.finished_at)

    _work(contender.worker(url, add, *choice), done)
    tally.check()
    return watch


def _work(block: Any, done: Callable[[], None], ready: Callable[[], None] = lambda: None) -> None:
    """Let the worker run until `done` returns, and a little longer, for what it should not do."""
    if isinstance(block, AbstractAsyncContextManager):
        uvloop.run(_work_async(block, done, ready))
        return
    with block:
        ready()
        done()
        time.sleep(AFTERMATH)


async def _work_async(
    block: AbstractAsyncContextManager[object], done: Callable[[], None], ready: Callable[[], None]
) -> None:
    async with block:
        ready()
        await asyncio.to_thread(done)
        await asyncio.sleep(AFTERMATH)


# Lone messages


def receive(contender: ModuleType, url: str, jobs: int, *choice: str) -> list[int]:
    """When each job's handler began; says `ready` when the worker runs."""
    tally = Tally(jobs)
    arrived = [0] * jobs

    def add(number: int) -> None:
        arrived[number] = time.monotonic_ns()
        tally.add(number)

    _work(contender.worker(url, add, *choice), tally.wait, lambda: print("ready", flush=True))
    tally.check()
    return arrived


def pace(contender: ModuleType, url: str, jobs: int, mode: str) -> list[int]:
    """When each job was given to be sent, one at a time and evenly."""
    block = contender.sender(url, mode)
    if isinstance(block, AbstractAsyncContextManager):
        return uvloop.run(_pace(block, jobs))
    sent = []
    with block as calls:
        start = time.monotonic()
        for number in range(jobs):
            time.sleep(max(0.0, start + number / PACE - time.monotonic()))
            sent.append(time.monotonic_ns())
            calls.one(number)
    return sent


async def _pace(block: AbstractAsyncContextManager[Calls], jobs: int) -> list[int]:
    sent = []
    async with block as calls:
        start = time.monotonic()
        for number in range(jobs):
            await asyncio.sleep(max(0.0, start + number / PACE - time.monotonic()))
            sent.append(time.monotonic_ns())
            await calls.one(number)
    return sent


def main(argv: list[str]) -> int:
    """Measure the part that `argv` names."""
    logging.basicConfig(level=logging.ERROR)
    name, url, part, jobs, *choice = argv
    contender = importlib.import_module(name)
    if part == "pace":
        print(json.dumps(pace(contender, url, int(jobs), *choice)))
        return 0
    if part == "receive":
        print(json.dumps(receive(contender, url, int(jobs), *choice)))
        return 0
    measured = {"enqueue": enqueue, "drain": drain}[part]
    return tell(contender.NAME, lambda: measured(contender, url, int(jobs), *choice))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
