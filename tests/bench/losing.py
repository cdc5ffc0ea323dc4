"""A contender that is fast because it loses a job, or does one that nobody sent; for `test_bench`."""

from __future__ import annotations

import os
from pathlib import Path

from bench.contest import Stopwatch
from bench.tally import Tally

NAME = "Careless"
MODES = {"one by one": 1.0}


def enqueue(_folder: Path, _jobs: int, _mode: str) -> Stopwatch:
    with Stopwatch() as watch:
        return watch


def drain(_folder: Path, tally: Tally) -> Stopwatch:
    with Stopwatch() as watch:
        for number in range(tally.jobs - (os.environ["CARELESS"] == "loses")):
            tally.add(number)
        if os.environ["CARELESS"] == "invents":
            tally.add(0)
        return watch
