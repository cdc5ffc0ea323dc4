"""Workers are killed at random while hundreds of requests are under way: each is answered, and exactly once."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime.beside import NEWEST, OLDEST, Beside, in_hand, until

from oncue.workloads.socket import RuntimeClient

KILLS = 5


@pytest.mark.parametrize("python", [OLDEST, NEWEST], ids=["oldest", "newest"])
@pytest.mark.parametrize(("handler", "processes", "concurrency"), [("echo", 1, 1), ("echo", 3, 2), ("greet", 2, 16)])
async def test_every_request_is_answered_once(python: Path, handler: str, processes: int, concurrency: int) -> None:
    settings = {"ONCUE_PROCESSES": str(processes), "ONCUE_CONCURRENCY": str(concurrency)}
    async with Beside(python, f"handlers.{handler}", **settings) as beside, await beside.connect() as client:
        enough = asyncio.Event()
        killer = asyncio.create_task(kill(beside, enough))
        numbers = itertools.count()
        told = sum(await asyncio.gather(*(lane(client, numbers, handler, enough) for _ in range(64))), Counter[str]())
        await killer
        assert told["done"] > 100
        assert set(told) <= {"done", "crash_error"}
        assert told["crash_error"] <= KILLS * concurrency
        await in_hand(client, 0)
        await until((beside.folder / "runtime-ready").exists)


async def lane(client: RuntimeClient, numbers: Iterator[int], handler: str, enough: asyncio.Event) -> Counter[str]:
    told: Counter[str] = Counter()
    for number in numbers:
        reply = await client.call(b'"%d"' % number)
        if reply.failure is None:
            expected = f'"{number}"' if handler == "echo" else f'"Hello, {number}!"'
            assert bytes(reply.items[0].payload).decode() == expected
        told["done" if reply.failure is None else reply.failure.code] += 1
        if enough.is_set():
            break
    return told


async def kill(beside: Beside, enough: asyncio.Event) -> None:
    chance = random.Random(7)
    for _ in range(KILLS):
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        workers = beside.workers()
        if workers:
            os.kill(chance.choice(workers), signal.SIGKILL)
    enough.set()
