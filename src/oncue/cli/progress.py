"""A progress bar on standard error, drawn on a terminal and silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Call it with how many are done so far; `count` is the last such number. Once stopped it is gone from the screen."""

    count: int

    def __call__(self, done: int) -> None: ...
    def stop(self) -> None: ...


class _Count:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, done: int) -> None:
        self.count = done

    def stop(self) -> None:
        """Nothing is shown, so there is nothing to take away."""


class _Bar(_Count):
    def __init__(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total)

    def __call__(self, done: int) -> None:
        super().__call__(done)
        self._progress.update(self._task, completed=done)

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Progress]:
    """Show how far something is; it is gone when the block ends."""
    if not sys.stderr.isatty():
        yield _Count()
        return
    bar = _Bar(label, total)
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()
