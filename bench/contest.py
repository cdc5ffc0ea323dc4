"""One part of the contest in a process of its own: `python -m bench.contest MODULE PART FOLDER JOBS [CHOICE]`.

Prints what it measured as a line of JSON; exits with 1 if a job was lost or invented.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from bench.tally import MiscountError, Tally


class Stopwatch:
    """Seconds of the clock and of the processor inside a `with` block, or up to `stop`."""

    def __enter__(self) -> Self:
        self.seconds = self.cpu = 0.0
        self._cpu_started = time.process_time()
        self._started = time.perf_counter()
        return self

    def stop(self, at: float) -> None:
        """What is measured ended at this moment of `time.perf_counter`."""
        self.cpu = time.process_time() - self._cpu_started
        self.seconds = at - self._started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.seconds:
            self.stop(time.perf_counter())


def main(argv: list[str]) -> int:
    """Measure the part that `argv` names."""
    name, part, folder, jobs, *choice = argv
    contender: ModuleType = importlib.import_module(name)
    status = 0
    try:
        if part == "enqueue":
            watch = contender.enqueue(Path(folder), int(jobs), *choice)
        else:
            tally = Tally(int(jobs))
            watch = contender.drain(Path(folder), tally, *choice)
            tally.check()
        print(json.dumps({"seconds": watch.seconds, "cpu": watch.cpu}))
    except* MiscountError as errors:
        print(f"{contender.NAME}: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
