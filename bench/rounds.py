"""Rounds of the contest: every contender does the same jobs in turn, each in a new process on a new file, and what counts is
the ratio between two of one round. The machine's moods meet both alike.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.tally import MiscountError

ROOT = Path(__file__).parents[1]
OURS = "bench.contenders.oncue_app"
PEERS = ("bench.contenders.huey_sqlite", "bench.contenders.persist_queue")


class Work(NamedTuple):
    """Something that a contender did: `part` is enqueue or drain, `mode` the way of enqueueing."""

    contender: str
    part: str
    mode: str = ""


class Speed(NamedTuple):
    """What it took for `jobs` jobs, in seconds of the clock and of the processor."""

    jobs: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


Round = Mapping[Work, Speed]


def measure(contender: str, part: str, folder: str, jobs: int, *more: str) -> Speed:
    """One part in a process of its own; raise `MiscountError` if it lost or invented a job, or failed."""
    command = [sys.executable, "-m", "bench.contest", contender, part, folder, str(jobs), *more]
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise MiscountError(f"{contender} failed to {part} {jobs} jobs, see above")
    return Speed(jobs, **json.loads(done.stdout))


def play(contenders: Sequence[str], jobs: int, tuned: Mapping[str, str], tell: Callable[[str], None]) -> Round:
    """One round of all contenders. Each way of enqueueing is followed by a drain that finds every job, or the run has failed;
    the drain that counts is the one after the contender's first way."""
    speeds: dict[Work, Speed] = {}
    for contender in contenders:
        module = importlib.import_module(contender)
        for mode, share in module.MODES.items():
            tell(f"{module.NAME}, {mode}")
            some = max(1, int(jobs * share))
            with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
                speeds[Work(contender, "enqueue", mode)] = measure(contender, "enqueue", folder, some, mode)
                drained = measure(contender, "drain", folder, some, *_tuning(tuned, contender))
            speeds.setdefault(Work(contender, "drain"), drained)
    return speeds


def _tuning(tuned: Mapping[str, str], contender: str) -> list[str]:
    return [tuned[contender]] if contender in tuned else []


def tune(contenders: Sequence[str], jobs: int, tries: int = 3) -> dict[str, str]:
    """For each contender that has a choice of settings, the one that drained fastest here, in the best of some tries."""
    best = {}
    for contender in contenders:
        module = importlib.import_module(contender)
        speeds: dict[str, float] = {}
        for choice in (*getattr(module, "CHOICES", ()),) * tries:
            with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
                measure(contender, "enqueue", folder, jobs, next(iter(module.MODES)))
                rate = measure(contender, "drain", folder, jobs, choice).rate
            speeds[choice] = max(rate, speeds.get(choice, 0.0))
        if speeds:
            best[contender] = max(speeds, key=lambda choice: speeds[choice])
    return best


class Ratio(NamedTuple):
    """How many times faster one work was than another in the same round: the median of all rounds, and the extremes."""

    median: float
    lowest: float
    highest: float


def ratio(rounds: Sequence[Round], ours: Work, theirs: Work) -> Ratio:
    """Compare the rates of two works, round by round."""
    ratios = [each[ours].rate / each[theirs].rate for each in rounds]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def median_rate(rounds: Sequence[Round], work: Work) -> float:
    """Jobs a second, the median of all rounds."""
    return statistics.median(each[work].rate for each in rounds)


def median_cpu(rounds: Sequence[Round], work: Work) -> float:
    """Seconds of the processor for ten thousand jobs, the median of all rounds."""
    return statistics.median(each[work].cpu / each[work].jobs * 10_000 for each in rounds)
