"""persist-queue's SQLiteAckQueue, flushed to disk at every commit.

It is a queue without workers, so the loop around it is the shortest that acknowledges after success. One thread, one
connection: more of either wait for each other. It keeps acknowledged rows and reads past all of them for the next one, so they
are dropped now and then, as often as was fastest: without that it takes more than twice as much of the processor.
"""

from __future__ import annotations

import time
from pathlib import Path

from persistqueue import Empty, SQLiteAckQueue

from bench.contest import Stopwatch
from bench.tally import AFTERMATH, Tally

NAME = "persist-queue"
MODES = {"one by one": 1.0}
DROP_EVERY = 200


def _opened(folder: Path) -> SQLiteAckQueue:
    queue = SQLiteAckQueue(str(folder / "persist-queue"), multithreading=False)
    queue._putter.execute("PRAGMA synchronous=FULL")  # noqa: SLF001  # whatever SQLite was built with
    return queue


def enqueue(folder: Path, jobs: int, _mode: str) -> Stopwatch:
    queue = _opened(folder)
    with Stopwatch() as watch:
        for number in range(jobs):
            queue.put(number)
    queue.close()
    return watch


def drain(folder: Path, tally: Tally) -> Stopwatch:
    queue = _opened(folder)
    with Stopwatch() as watch:
        try:
            while True:
                for _ in range(DROP_EVERY):
                    item = queue.get(block=False, raw=True)
                    tally.add(item["data"])
                    queue.ack(id=item["pqid"])
                    watch.stop(time.perf_counter())
                queue.clear_acked_data(max_delete=DROP_EVERY, keep_latest=0)
        except Empty:
            pass
    time.sleep(AFTERMATH)
    tally.check()
    queue.close()
    return watch
