"""The live table of actors at the bottom of a terminal; what is printed meanwhile appears above it."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oncue.local.state import ActorReport

COLUMNS = ("ACTOR", "STATE", "REPLICAS", "READY", "LEASED", "DELAYED", "DEAD", "RATE", "ERRORS")
_STATES = {"idle": "dim", "starting": "yellow", "running": "green", "failing": "bold red", "stopping": "yellow"}
_WINDOW = 5.0
"""The rate is that of so many seconds."""
_WRONG = 3
"""For so many actors that cannot start the reason is told."""
_SHORTEST = 8
"""Characters of a name that stay, however narrow the terminal."""
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


def render(reports: Sequence[ActorReport], rates: Rates, now: float, width: int = 160, height: int = 1000) -> Table:
    """The table; below it a line for each of the first actors that cannot start. It fits a terminal of this width and height:
    long names are cut, and actors with nothing to do are left out first, which a last line tells."""
    wrong = [f"{each.name}: {each.error}".translate(_CONTROLS) for each in reports if each.state == "failing"][:_WRONG]
    shown = _fitting(reports, height - len(wrong) - 2)  # the heading, and the cursor's line
    rows = [_row(report, rates.of(report, now)) for report in reports]
    room = width - sum(max(cell_len(row[column]) for row in [COLUMNS, *rows]) + 2 for column in range(1, len(COLUMNS)))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for report, (name, state, *counts, dead, rate, errors) in zip(reports, rows, strict=True):
        if report not in shown:
            continue
        cut = Text(name, style="dim" if report.built_in else "")
        cut.truncate(max(room, _SHORTEST), overflow="ellipsis")
        table.add_row(
            cut,
            Text(state, style=_STATES.get(state, "")),
            *counts,
            Text(dead, style="red" if report.dead else ""),
            rate,
            Text(errors, style="red" if report.errors else ""),
        )
    table.caption_justify = "left"
    below = [Text(line, style="red") for line in wrong]
    if len(shown) < len(reports):
        below.append(Text(f"and {len(reports) - len(shown)} more; oncue ps lists all", style="dim"))
    table.caption = Text("\n", no_wrap=True, overflow="ellipsis").join(below) if below else None
    return table


def _fitting(reports: Sequence[ActorReport], most: int) -> Sequence[ActorReport]:
    """As many as there is room for, and a line that tells of the others: those first that fail, then those with work."""
    if len(reports) <= most:
        return reports

    def urgency(report: ActorReport) -> int:
        waits = report.ready or report.leased or report.delayed
        return 0 if report.state == "failing" else 1 if waits else 2 if report.state != "idle" else 3

    return sorted(reports, key=urgency)[: max(most - 1, 1)]


def _row(report: ActorReport, rate: float | None) -> Sequence[str]:
    return (
        report.name,
        report.state,
        "built in" if report.built_in else f"{report.replicas}/{report.wanted}",
        *(_count(number) for number in (report.ready, report.leased, report.delayed, report.dead)),
        "-" if rate is None else f"{rate:,.0f}/s",
        _count(report.errors),
    )


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


class LiveTable:
    """Draws the table anew each time that it is shown."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rates = Rates()

    def show(self, reports: Sequence[ActorReport]) -> None:
        """Draw it as things are now."""
        width, height = self._live.console.size
        self._live.update(render(reports, self._rates, time.monotonic(), width, height), refresh=True)


@contextmanager
def live_table() -> Iterator[LiveTable | None]:
    """The table on standard error while the block lasts; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    console = Console(file=sys.stderr, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty()) as live:
        yield LiveTable(live)
