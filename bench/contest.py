"""One part of the contest in a process of its own: `python -m bench.contest MODULE FOLDER PART JOBS [CHOICE]`.

Prints what it measured as a line of JSON; exits with 1 if a job was lost or invented.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from bench.processes import processor_seconds
from bench.tally import MiscountError, Tally

SERVER = "BENCH_SERVER"
"""Names the process whose use of the processor is measured as well."""


class Stopwatch:
    """Seconds of the clock and of the processor, and of the server's processor, from `start` or inside a `with` block, up to `stop`
    or its end."""

    def __init__(self) -> None:
        self.seconds = self.cpu = self.server = 0.0
        self.running = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """What is measured begins now."""
        self.running = True
        self._server_started = _server()
        self._cpu_started = time.process_time()
        self._started = time.perf_counter()

    def stop(self, at: float) -> None:
        """What is measured ended at this moment of `time.perf_counter`."""
        self.cpu = time.process_time() - self._cpu_started
        self.server = _server() - self._server_started
        self.seconds = at - self._started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.seconds:
            self.stop(time.perf_counter())


def _server() -> float:
    return processor_seconds(int(os.environ[SERVER])) if SERVER in os.environ else 0.0


def tell(name: str, measured: Callable[[], Stopwatch]) -> int:
    """Print what `measured` returns, or that a job was lost or invented; the status to exit with."""
    status = 0
    try:
        watch = measured()
        print(json.dumps({"seconds": watch.seconds, "cpu": watch.cpu, "server": watch.server}))
    except* MiscountError as errors:
        print(f"{name}: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


def main(argv: list[str]) -> int:
    """Measure the part that `argv` names."""
    name, folder, part, jobs, *choice = argv
    contender: ModuleType = importlib.import_module(name)

    def measured() -> Stopwatch:
        if part == "enqueue":
            watch: Stopwatch = contender.enqueue(Path(folder), int(jobs), *choice)
        else:
            tally = Tally(int(jobs))
            watch = contender.drain(Path(folder), tally, *choice)
            tally.check()
        return watch

    return tell(contender.NAME, measured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
