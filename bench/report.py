"""What was measured, as Markdown that reads well on a terminal too; the results in docs/benchmarks.md are this text."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.alone import Idle, Lone, Start
from bench.rounds import OURS, Round, Work, median_cpu, median_rate, name, ratio

MARK = "<!-- results: written by `make bench ARGS=--write` -->"
GOAL = 5.0
GOALS = {"lone": 10.0, "resident": 45.0, "core": 1.0, "help": 100.0}


def machine(*names: str) -> str:
    """The date, the machine, and the versions of what is named."""
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{packages}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def contest(rounds: Sequence[Round], contenders: Sequence[str], tuned: Mapping[str, str], jobs: int) -> str:
    """The tables of the contest."""
    lines = [
        f"{jobs:,} jobs in each of {len(rounds)} rounds; rates are medians.",
        *(f"{name(peer)} drains with {_threads(choice)}, the fastest choice here." for peer, choice in tuned.items()),
        "",
        "| | jobs a second | CPU seconds for 10,000 |",
        "|---|--:|--:|",
    ]
    for work in rounds[0]:
        label = f"{name(work.contender)}: {work.part}" + (f", {work.mode}" if work.mode else "")
        lines.append(f"| {label} | {median_rate(rounds, work):,.0f} | {median_cpu(rounds, work):.2f} |")
    lines += ["", "| OnCue is faster than | times, median | lowest | highest | goal |", "|---|--:|--:|--:|---|"]
    for label, ours, theirs in _pairs(rounds[0], contenders):
        found = ratio(rounds, ours, theirs)
        lines.append(
            f"| {label} | {found.median:.1f} | {found.lowest:.1f} | {found.highest:.1f} | {_goal(found.median, ours, theirs)} |"
        )
    return "\n".join(lines) + "\n"


def _threads(choice: str) -> str:
    return "one thread" if choice == "1" else f"{choice} threads"


def _pairs(first: Round, contenders: Sequence[str]) -> Iterator[tuple[str, Work, Work]]:
    for peer in contenders:
        if peer == OURS or Work(OURS, "drain") not in first:
            continue
        for theirs in (work for work in first if work.contender == peer):
            for ours in (work for work in first if work.contender == OURS and work.part == theirs.part):
                yield f"{name(peer)}, {ours.part}" + (f", {ours.mode}" if ours.mode else ""), ours, theirs


def _goal(reached: float, ours: Work, theirs: Work) -> str:
    if "huey" not in theirs.contender or ours.mode not in {"", "concurrent"}:
        return ""
    return f"{GOAL:g} times: {'reached' if reached >= GOAL else 'MISSED'}"


def alone(lone: Lone, idle: Idle, start: Start) -> str:
    """The table of what needs no peer."""
    rows = [
        (
            f"lone `send` to its handler in another process, {lone.sends} times",
            f"{lone.median:.1f} ms median, {lone.p99:.1f} ms p99",
            "10 ms median",
            lone.median < GOALS["lone"],
        ),
        (
            "idle `oncue run`, memory",
            f"{idle.resident:.1f} MB resident",
            "45 MB",
            idle.resident <= GOALS["resident"],
        ),
        (
            f"idle `oncue run`, {idle.seconds:g} seconds",
            f"{idle.core:.2f} % of a core (to {idle.step:.2f} %)",
            "1 %",
            idle.core < GOALS["core"],
        ),
        (
            f"`oncue --help`, {start.runs} times",
            f"{start.median:.0f} ms median, {start.fastest:.0f} ms fastest; Python alone {start.python:.0f} ms",
            "100 ms",
            start.median < GOALS["help"],
        ),
    ]
    lines = ["| | measured | goal |", "|---|---|---|"]
    lines += [
        f"| {what} | {found} | {goal}: {'reached' if reached else 'MISSED'} |" for what, found, goal, reached in rows
    ]
    return "\n".join(lines) + "\n"


def write(page: Path, results: str) -> None:
    """Put the results below the mark in `page`."""
    kept, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    assert mark, f"{page} has no line {MARK}"
    page.write_text(f"{kept}{mark}\n\n{results}", encoding="utf-8")
