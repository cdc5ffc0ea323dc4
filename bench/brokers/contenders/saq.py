"""SAQ, which has Redis only. Its jobs are gone when they are done, as the others' are; uvloop, and as many jobs at a time as
drain fastest here. It has no call for many.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bench.brokers.contest import Calls

NAME = "SAQ"
PACKAGES = {"redis": ("saq", "redis", "uvloop")}
MODES = {"redis": {"concurrent": 1.0}}
SENDERS = 50
CHOICES = {"redis": tuple(f"{jobs} at a time" for jobs in (5, 20, 50))}
OPERATIONS = 100
"""Sends at the same time, which is also how many connections there are."""


@asynccontextmanager
async def sender(url: str, _mode: str) -> AsyncIterator[Calls]:
    from saq import Queue

    queue = Queue.from_url(url, max_concurrent_ops=OPERATIONS)

    async def one(number: int) -> None:
        await queue.enqueue("noop", number=number, ttl=-1)

    yield Calls(one)
    await queue.disconnect()


@asynccontextmanager
async def worker(url: str, add: Callable[[int], None], choice: str = "20 at a time") -> AsyncIterator[None]:
    from saq import Queue, Worker

    logging.getLogger("saq").setLevel(logging.CRITICAL)  # its sweep complains of jobs that are gone when it looks again
    queue = Queue.from_url(url, max_concurrent_ops=OPERATIONS)

    async def noop(_context: Any, *, number: int) -> None:
        add(number)

    running = Worker(queue, functions=[("noop", noop)], concurrency=int(choice.partition(" ")[0]))
    task = asyncio.create_task(running.start())
    yield
    await running.stop()
    await task
    await queue.disconnect()
