"""OnCue through its public library, on SQLite as it comes: every commit is flushed to disk, and acknowledged after success."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from bench.contest import Stopwatch
from bench.tally import AFTERMATH, Tally
from oncue import App
from oncue.transports import open_transport
from oncue.transports.base import Depth

NAME = "OnCue"
MODES = {"concurrent": 1.0, "send_many": 1.0, "one by one": 0.1}
"""Ways of sending, and the share of the jobs that is enough to measure each."""
SENDERS = 500
"""How many coroutines await `send` at the same time."""
BATCH = 1000
"""How many payloads one `send_many` gets."""
CONCURRENCY = 256


def _app(folder: Path, tally: Tally | None = None) -> App:
    app = App(f"sqlite:///{folder}/oncue.db")

    @app.actor(concurrency=CONCURRENCY)
    async def noop(number: int) -> None:
        if tally is not None:
            tally.add(number)

    return app


def _run(coroutine: Coroutine[Any, Any, Stopwatch]) -> Stopwatch:
    return uvloop.run(coroutine)  # as `oncue run` does


def enqueue(folder: Path, jobs: int, mode: str) -> Stopwatch:
    return _run(_enqueue(folder, jobs, mode))


async def _enqueue(folder: Path, jobs: int, mode: str) -> Stopwatch:
    app = _app(folder)
    noop = app.actors["noop"]
    numbers = iter(range(jobs))

    async def send() -> None:
        for number in numbers:
            await noop.send(number)

    async with app:
        with Stopwatch() as watch:
            if mode == "send_many":
                for first in range(0, jobs, BATCH):
                    await noop.send_many(range(first, min(first + BATCH, jobs)))
            else:
                async with asyncio.TaskGroup() as group:
                    for _ in range(SENDERS if mode == "concurrent" else 1):
                        group.create_task(send())
    return watch


def drain(folder: Path, tally: Tally) -> Stopwatch:
    return _run(_drain(folder, tally))


async def _drain(folder: Path, tally: Tally) -> Stopwatch:
    app = _app(folder, tally)
    with Stopwatch() as watch:
        async with app.working():
            await asyncio.to_thread(tally.wait)
            await _until_empty(app)
            watch.stop(time.perf_counter())
            await asyncio.sleep(AFTERMATH)
    return watch


async def _until_empty(app: App) -> None:
    """Return when the store holds nothing any more: every acknowledgement is committed."""
    transport = await open_transport(app.settings.settings.url)
    while True:
        depth = await transport.depth("asya-noop")
        if depth == Depth(0, 0, 0):
            break
        await asyncio.sleep(0.002)
    await transport.close()
