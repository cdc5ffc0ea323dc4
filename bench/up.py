"""What `oncue up` costs and how soon it starts: `python -m bench.up`, alone on the machine, please. Takes about two minutes.

From a message in an empty queue at zero replicas to the first line of its handler; then the memory (PSS) and the processor
time of twenty actors that have nothing to do, asleep and with a replica each.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from oncue import App
from oncue.local.state import HOME, ask, find

URL = "sqlite:///.oncue/oncue.db"
PATIENCE = 60.0
ACTORS = 20
GOALS = {"start": 0.5, "memory": 400.0, "core": 2.0}

HANDLERS = """
import time

MOMENT = time.time

def when(payload):
    moment = MOMENT()
    with open("moments", "a") as moments:
        moments.write(f"{payload} {moment!r}\\n")
"""
MANIFEST = """\
apiVersion: asya.sh/v1alpha1
kind: AsyncActor
metadata: {{name: {name}}}
spec:
  transport: sqlite
  scaling: {{enabled: {elastic}, minReplicas: 0, maxReplicas: 1, cooldownPeriod: 1, pollingInterval: 1}}
  workload:
    template:
      spec:
        containers:
          - name: asya-runtime
            env:
              - {{name: ASYA_HANDLER, value: handlers.when}}
---
"""


class Idle(NamedTuple):
    """Megabytes of all processes together, in shares of what they share, and per cent of one core."""

    processes: int
    memory: float
    core: float


@contextmanager
def up(count: int, *, elastic: bool) -> Iterator[int]:
    """`oncue up` with so many actors in an empty folder; its process."""
    with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
        before = Path.cwd()
        os.chdir(folder)
        Path("handlers.py").write_text(HANDLERS, encoding="utf-8")
        said = str(elastic).lower()
        text = "".join(MANIFEST.format(name=f"actor-{number}", elastic=said) for number in range(count))
        Path("actors.yaml").write_text(text, encoding="utf-8")
        subprocess.run([sys.executable, "-P", "-m", "oncue", "up", "--detach"], check=True, stderr=subprocess.DEVNULL)
        running = find(HOME)
        assert running is not None
        try:
            yield running.pid
        finally:
            subprocess.run([sys.executable, "-P", "-m", "oncue", "down"], check=True, stderr=subprocess.DEVNULL)
            os.chdir(before)


def starts(rounds: int) -> list[float]:
    """Seconds from the call of `send` to the handler, at zero replicas each time."""
    with up(1, elastic=True):
        return [asyncio.run(_start(number)) for number in range(rounds)]


async def _start(number: int) -> float:
    await _until(lambda: _state("actor-0") == "idle")
    await asyncio.sleep(number % 7 * 0.033)  # at any moment between two looks at the queue
    async with App(URL) as app:
        began = time.time()
        await app.send("actor-0", number)
        moments = Path("moments")
        await _until(lambda: moments.exists() and moments.read_text().count("\n") > number)
    said, moment = _last(moments)
    assert int(said) == number
    return float(moment) - began


def _last(moments: Path) -> list[str]:
    return moments.read_text(encoding="utf-8").splitlines()[-1].split()


def idle(seconds: float, *, elastic: bool) -> Idle:
    """Twenty actors with nothing to do."""
    with up(ACTORS, elastic=elastic) as pid:
        wanted = "idle" if elastic else "running"
        asyncio.run(_until(lambda: all(_state(f"actor-{number}") == wanted for number in range(ACTORS))))
        time.sleep(5.0)
        family = descendants(pid)
        before = sum(map(processor_seconds, family))
        time.sleep(seconds)
        used = sum(map(processor_seconds, family)) - before
        return Idle(len(family), sum(map(megabytes, family)), used / seconds * 100)


def _state(name: str) -> str:
    running = find(HOME)
    return next(each.state for each in ask(running) if each.name == name) if running is not None else ""


async def _until(right: object) -> None:
    assert callable(right)
    limit = time.monotonic() + PATIENCE
    while not right():
        assert time.monotonic() < limit, "it takes too long"
        await asyncio.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """This process and all below it."""
    found = [pid]
    for each in found:
        children = subprocess.run(["pgrep", "-P", str(each)], capture_output=True, text=True, check=False).stdout
        found += map(int, children.split())
    return found


def megabytes(pid: int) -> float:
    """What the process takes, pages that it shares with others counted by its share (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def processor_seconds(pid: int) -> float:
    """What the process has used of the processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure and print; exit with 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.up", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small round that only shows that everything works")
    quick = parser.parse_args().quick
    found = sorted(starts(3 if quick else 30))
    p99 = found[-1]
    print(
        f"from zero replicas to the handler: median {statistics.median(found):.3f} s, worst {p99:.3f} s, of {len(found)}"
    )
    good = p99 < GOALS["start"]
    for elastic in (True, False):
        what = "asleep" if elastic else "with a replica each"
        now = idle(2.0 if quick else 20.0, elastic=elastic)
        print(
            f"{ACTORS} idle actors {what}: {now.processes} processes, {now.memory:.0f} MB, {now.core:.2f} % of a core"
        )
        good = good and now.memory <= GOALS["memory"] and now.core < GOALS["core"]
    print("all goals met" if good else f"a goal was missed: {GOALS}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
