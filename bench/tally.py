"""Counts jobs as they are done, so that a benchmark cannot be fast by losing some or inventing others."""

from __future__ import annotations

import itertools
import threading
import time

PATIENCE = 20.0
"""Seconds without a single job after which the missing ones are taken for lost."""
AFTERMATH = 0.3
"""Seconds to look for jobs that come though all are done."""


class MiscountError(Exception):
    """Jobs were lost, came twice, or were never sent."""


class Tally:
    """Which of the jobs 0 to `jobs` - 1 have been done. `add` may be called by any thread."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.finished_at = 0.0
        self._came = bytearray(jobs)
        self._strangers: list[object] = []
        self._calls = itertools.count(1)
        self._last = jobs
        self._complete = threading.Event()

    def add(self, number: int) -> None:
        """Job `number` is done."""
        if 0 <= number < self.jobs and not self._came[number]:
            self._came[number] = 1
        else:
            self._strangers.append(number)
        if next(self._calls) == self._last:
            self.finished_at = time.perf_counter()
            self._complete.set()

    def wait(self, patience: float = PATIENCE) -> None:
        """Return when as many jobs were done as there are; raise `MiscountError` when none comes any more. Blocks."""
        before = -1
        while not self._complete.wait(patience):
            done = self._came.count(1)
            if done == before:
                self.check()
            before = done

    def check(self) -> None:
        """Raise `MiscountError` unless every job was done once and nothing else was."""
        lost = self._came.count(0)
        if lost or self._strangers:
            raise MiscountError(
                f"of {self.jobs} jobs {lost} were lost, and {len(self._strangers)} came that should not"
            )
