"""A line at the bottom of a terminal that says how the work goes, and stays below whatever else is printed."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from oncue.worker import Counts

_WINDOW = 5.0
"""The rate is that of so many seconds."""


class Rate:
    """Messages a second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, total: int, now: float) -> float:
        """The rate when `total` messages are done at the moment `now`."""
        self._seen.append((now, total))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        then, earlier = self._seen[0]
        return (total - earlier) / (now - then) if now > then else 0.0


def describe(counts: Counts, rate: float) -> str:
    """The counts in one line."""
    parts = [f"{rate:,.0f}/s", f"done {counts.done:,}"]
    parts += [f"{name} {count:,}" for name, count in (("retried", counts.retried), ("dead", counts.dead)) if count]
    parts.append(f"in flight {counts.in_flight:,}")
    if counts.waiting is not None:
        parts.append(f"waiting {counts.waiting:,}")
    return "   ".join(parts)


class StatusLine:
    """Draws one line on a terminal. What is written through `beside` appears above it. Any thread may use it."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.RLock()
        self._drawn = False
        self._open: dict[int, bool] = {}

    def show(self, text: str) -> None:
        """Draw `text` in place of what was drawn before, unless somebody's own line is unfinished."""
        room = shutil.get_terminal_size().columns - 1
        with self._lock:
            if any(self._open.values()):
                return
            self._terminal.write(f"\r\x1b[2K\x1b[2m{text[:room]}\x1b[0m\r")
            self._terminal.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._drawn:
                self._terminal.write("\r\x1b[2K")
                self._terminal.flush()
                self._drawn = False

    def write(self, stream: TextIO, text: str) -> int:
        """Write `text` to `stream`, above the line."""
        with self._lock:
            if text:
                self.clear()
                self._open[id(stream)] = not text.endswith("\n")
            return stream.write(text)

    def beside(self, stream: TextIO) -> TextIO:
        """`stream`, but writing above the line."""
        return cast("TextIO", _Beside(self, stream))


class _Beside:
    def __init__(self, line: StatusLine, stream: TextIO) -> None:
        self._line = line
        self._stream = stream

    def write(self, text: str) -> int:
        return self._line.write(self._stream, text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def status_line() -> Iterator[StatusLine | None]:
    """The line on standard error, and what is printed meanwhile above it; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    line = StatusLine(sys.stderr)
    out, err = sys.stdout, sys.stderr
    sys.stderr = line.beside(err)
    if out.isatty():
        sys.stdout = line.beside(out)
    try:
        yield line
    finally:
        line.clear()
        sys.stdout, sys.stderr = out, err


def now() -> float:
    """The moment, for rates."""
    return time.monotonic()
