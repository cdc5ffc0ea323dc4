"""What needs no peer: a lone message on its way to a worker, a worker that has nothing to do, and the command line's start."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import arrivals
from bench.rounds import ROOT
from bench.tally import MiscountError
from oncue import App

WARM_UP = 10
PATIENCE = 20.0


class Lone(NamedTuple):
    """Milliseconds from the call of `send` to the first line of the handler in another process."""

    sends: int
    median: float
    p99: float
    worst: float


class Idle(NamedTuple):
    """A worker without work: megabytes resident, and per cent of one core, known to within `step` per cent."""

    seconds: float
    resident: float
    core: float
    step: float


class Start(NamedTuple):
    """Milliseconds that `oncue --help` takes, and the interpreter alone."""

    runs: int
    median: float
    fastest: float
    python: float


def command() -> list[str]:
    """The command line as users start it."""
    script = Path(sys.executable).with_name("oncue")
    return [str(script)] if script.exists() else [shutil.which("oncue") or "oncue"]


@contextmanager
def worker(folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """`oncue run` on `bench.arrivals`, ended at the end of the block."""
    environ = {**os.environ, "ONCUE_URL": f"sqlite:///{folder}/alone.db", "BENCH_ARRIVALS": f"{folder}/arrivals"}
    Path(folder, "arrivals").touch()
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(
            [*command(), "run", "bench.arrivals:app"], cwd=ROOT, env=environ, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


async def send_alone(folder: str, sends: int) -> Lone:
    """One message at a time, each after a pause in which everything falls asleep."""
    app = App(f"sqlite:///{folder}/alone.db")
    arrive = app.actor(arrivals.arrive.function)  # the same queue, and no worker here
    took: list[float] = []
    async with app:
        for number in range(WARM_UP + sends):
            await arrive.send(time.monotonic_ns())
            took.append(await _arrival(Path(folder, "arrivals"), number))
            await asyncio.sleep(random.uniform(0.02, 0.08))
    took = sorted(took[WARM_UP:])
    return Lone(sends, statistics.median(took), took[min(len(took) - 1, len(took) * 99 // 100)], took[-1])


async def _arrival(path: Path, number: int) -> float:
    """Milliseconds that message `number` took."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        lines = _lines(path)
        if len(lines) > number + 1:
            if len(lines) > number + 2:
                raise MiscountError(f"{number + 1} lone messages were sent and {len(lines) - 1} came")
            return int(lines[number]) / 1e6
        await asyncio.sleep(0.002)
    log = "\n".join(_lines(path.with_name("log")))
    raise MiscountError(f"lone message {number} did not come within {PATIENCE:.0f} s; the worker said:\n{log}")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def watch_idle(process: subprocess.Popen[bytes], seconds: float) -> Idle:
    """Look at a worker (with its children) while nothing happens. Blocks."""
    time.sleep(1.0)
    before = _cpu(process.pid)
    time.sleep(seconds)
    step = 1 / os.sysconf("SC_CLK_TCK") if platform.system() == "Linux" else 1.0
    used = _cpu(process.pid) - before
    return Idle(seconds, _resident(process.pid), used / seconds * 100, step / seconds * 100)


def _family(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _resident(pid: int) -> float:
    members = ",".join(map(str, _family(pid)))
    sizes = subprocess.run(["ps", "-o", "rss=", "-p", members], check=True, capture_output=True, text=True).stdout
    return sum(map(int, sizes.split())) / 1024


def _cpu(pid: int) -> float:
    """Seconds of the processor that a process and its children have used; in whole seconds where there is no /proc."""
    if platform.system() != "Linux":
        members = ",".join(map(str, _family(pid)))
        times = subprocess.run(["ps", "-o", "time=", "-p", members], check=True, capture_output=True, text=True).stdout
        return sum(_seconds(text) for text in times.split())
    ticks = 0
    for member in _family(pid):
        fields = Path(f"/proc/{member}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.replace("-", ":").split(":"):
        total = total * 60 + float(part)
    return total


def start_up(runs: int) -> Start:
    """Start the command line again and again."""
    took = [_milliseconds([*command(), "--help"]) for _ in range(runs)]
    python = [_milliseconds([sys.executable, "-c", ""]) for _ in range(runs)]
    return Start(runs, statistics.median(took), min(took), statistics.median(python))


def _milliseconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1e3


def measure(sends: int, seconds: float, runs: int) -> tuple[Lone, Idle, Start]:
    """All three."""
    with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder, worker(folder) as process:
        lone = asyncio.run(send_alone(folder, sends))
        idle = watch_idle(process, seconds)
    return lone, idle, start_up(runs)
