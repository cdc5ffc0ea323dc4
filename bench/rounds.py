"""Rounds of the contest: every contender does the same jobs in turn, each in a new process on a new file, and what counts is
the ratio between two of one round. The machine's moods meet both alike.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

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
    """What it took for `jobs` jobs, in seconds of the clock, of the processor, and of the server's processor."""

    jobs: int
    seconds: float
    cpu: float
    server: float = 0.0

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


Round = Mapping[Work, Speed]
Measure = Callable[..., Speed]
"""Measures a part of what one contender does on one place: (part, jobs, mode or choice)."""


class Ground(Protocol):
    """Where contenders meet."""

    def modes(self, contender: str) -> Mapping[str, float]:
        """Its ways of enqueueing, and the share of the jobs that is enough to measure each."""
        ...

    def choices(self, contender: str) -> Sequence[str]:
        """Settings of its worker that may be the fastest."""
        ...

    def fresh(self, contender: str) -> AbstractContextManager[Measure]:
        """A new place for it, where nothing is yet."""
        ...


class Files:
    """A folder for each; all are run by this Python."""

    def modes(self, contender: str) -> Mapping[str, float]:
        modes: Mapping[str, float] = importlib.import_module(contender).MODES
        return modes

    def choices(self, contender: str) -> Sequence[str]:
        return getattr(importlib.import_module(contender), "CHOICES", ())

    @contextmanager
    def fresh(self, contender: str) -> Iterator[Measure]:
        with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
            yield partial(measure, (sys.executable, "-m", "bench.contest"), contender, folder)


FILES = Files()


def measure(
    program: Sequence[str], contender: str, place: str, part: str, jobs: int, *more: str, **environ: str
) -> Speed:
    """One part in a process of its own; raise `MiscountError` if it lost or invented a job, or failed."""
    command = [*program, contender, place, part, str(jobs), *more]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise MiscountError(f"{contender} failed to {part} {jobs} jobs, see above")
    return Speed(jobs, **json.loads(done.stdout.splitlines()[-1]))


def play(
    contenders: Sequence[str],
    jobs: int,
    tuned: Mapping[str, str],
    tell: Callable[[str], None],
    ground: Ground = FILES,
) -> Round:
    """One round of all contenders. Each way of enqueueing is followed by a drain that finds every job, or the run has failed;
    the drain that counts is the one after the contender's first way."""
    speeds: dict[Work, Speed] = {}
    for contender in contenders:
        tuning = [tuned[contender]] if contender in tuned else []
        for mode, share in ground.modes(contender).items():
            tell(f"{name(contender)}, {mode}")
            some = max(1, int(jobs * share))
            with ground.fresh(contender) as measured:
                speeds[Work(contender, "enqueue", mode)] = measured("enqueue", some, mode)
                drained = measured("drain", some, *tuning)
            speeds.setdefault(Work(contender, "drain"), drained)
    return speeds


def name(contender: str) -> str:
    """What a contender is called."""
    return str(importlib.import_module(contender).NAME)


def tune(contenders: Sequence[str], jobs: int, tries: int = 3, ground: Ground = FILES) -> dict[str, str]:
    """For each contender that has a choice of settings, the one that drained fastest here, in the best of some tries."""
    best = {}
    for contender in contenders:
        speeds: dict[str, float] = {}
        for choice in (*ground.choices(contender),) * tries:
            with ground.fresh(contender) as measured:
                measured("enqueue", jobs, next(iter(ground.modes(contender))))
                rate = measured("drain", jobs, choice).rate
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


def median_server(rounds: Sequence[Round], work: Work) -> float:
    """Seconds of the server's processor for ten thousand jobs, the median of all rounds."""
    return statistics.median(each[work].server / each[work].jobs * 10_000 for each in rounds)
