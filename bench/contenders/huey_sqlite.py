"""Huey on SQLite, flushed to disk at every commit.

Its best honest setting: no result store, no scheduler, no health check, a large page cache, and as many
threads in its one process as are fastest here and now (one of `CHOICES`). Its consumer takes a task out of the file before it runs it, so a
killed one loses what it was working on; the comparison is to its advantage there, by one transaction a job.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from huey import SqliteHuey

from bench.contest import Stopwatch
from bench.tally import AFTERMATH, Tally

NAME = "Huey"
MODES = {"one by one": 1.0}
CHOICES = ("1", "2", "4", "8")


def _opened(folder: Path, tally: Tally | None = None) -> tuple[SqliteHuey, object]:
    huey = SqliteHuey("bench", filename=str(folder / "huey.db"), fsync=True, results=False, utc=True, cache_mb=64)

    @huey.task()
    def noop(number: int) -> None:
        if tally is not None:
            tally.add(number)

    return huey, noop


def enqueue(folder: Path, jobs: int, _mode: str) -> Stopwatch:
    """Every call is one transaction: Huey has no call for many, and more threads share its one connection."""
    huey, noop = _opened(folder)
    huey.storage.queue_size()  # the connection is open now
    with Stopwatch() as watch:
        for number in range(jobs):
            noop(number)
    huey.storage.close()
    return watch


def drain(folder: Path, tally: Tally, threads: str = "2") -> Stopwatch:
    logging.getLogger("huey").setLevel(logging.WARNING)
    huey, _ = _opened(folder, tally)
    consumer = huey.create_consumer(
        workers=int(threads), worker_type="thread", periodic=False, check_worker_health=False, initial_delay=0.001
    )
    with Stopwatch() as watch:
        consumer.start()
        tally.wait()
        watch.stop(tally.finished_at)
    time.sleep(AFTERMATH)
    consumer.stop(graceful=True)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    left = huey.storage.queue_size()
    huey.storage.close()
    assert not left, f"{left} tasks are still in Huey's file"
    return watch
