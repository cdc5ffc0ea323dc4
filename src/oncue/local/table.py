"""The live table of actors at the bottom of a terminal; what is printed meanwhile appears above it."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oncue.local.state import ActorReport

COLUMNS = ("ACTOR", "STATE", "REPLICAS", "READY", "LEASED", "DELAYED", "DEAD", "RATE", "ERRORS")
_STATES = {"idle": "dim", "starting": "yellow", "running": "green", "failing": "bold red", "stopping": "yellow"}
_WINDOW = 5.0
"""The rate is that of so many seconds."""
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")


class Rates:
    """Messages a second of each actor over the last few seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def of(self, report: ActorReport, now: float) -> float | None:
        """The rate of an actor at the moment `now`; None where nobody counts."""
        if report.done is None:
            return None
        seen = self._seen.setdefault(report.name, deque())
        seen.append((now, report.done))
        while len(seen) > 2 and now - seen[0][0] > _WINDOW:
            seen.popleft()
        then, before = seen[0]
        return (report.done - before) / (now - then) if now > then else 0.0


def render(reports: Sequence[ActorReport], rates: Rates, now: float) -> Table:
    """The table; below it a line for each actor that cannot start."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for report in reports:
        rate = rates.of(report, now)
        table.add_row(
            Text(report.name, style="dim" if report.built_in else ""),
            Text(report.state, style=_STATES.get(report.state, "")),
            "built in" if report.built_in else f"{report.replicas}/{report.wanted}",
            *(_count(number) for number in (report.ready, report.leased, report.delayed)),
            Text(_count(report.dead), style="red" if report.dead else ""),
            "-" if rate is None else f"{rate:,.0f}/s",
            Text(_count(report.errors), style="red" if report.errors else ""),
        )
    table.caption_justify = "left"
    wrong = [f"{each.name}: {each.error}".translate(_CONTROLS) for each in reports if each.state == "failing"]
    table.caption = Text("\n".join(wrong), style="red", no_wrap=True, overflow="ellipsis") if wrong else None
    return table


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


class LiveTable:
    """Draws the table anew each time that it is shown."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rates = Rates()

    def show(self, reports: Sequence[ActorReport]) -> None:
        """Draw it as things are now."""
        self._live.update(render(reports, self._rates, time.monotonic()), refresh=True)


@contextmanager
def live_table() -> Iterator[LiveTable | None]:
    """The table on standard error while the block lasts; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    console = Console(file=sys.stderr, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty()) as live:
        yield LiveTable(live)
