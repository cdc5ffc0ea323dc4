"""The demo (`make demo`): measure every source file of your Python's own standard library, and lose none.

Two worker processes serve the app in sourcecode.py. In the middle of the work one of them is killed, without warning and on
purpose. At the end every file is in the report or among the dead letters, which is checked against a count made without
OnCue. Nothing is installed or running besides; the queues are one file.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sourcecode
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from oncue.core.envelope import decode_envelope
from oncue.dead import list_dead
from oncue.transports import open_transport
from oncue.transports.base import Transport

HERE = Path(__file__).parent
ACTORS = ("list_files", "measure", "summarise")
WORKERS = 2
KILL_AFTER = 0.4
"""How much of the work is done when a worker is killed."""
PATIENCE = 60.0
"""Seconds without progress after which the demo gives up."""

console = Console(highlight=False)


class Counts(NamedTuple):
    """How far the work is: messages that `measure` is done with, the dead ones among them, rows in the report, files that
    are being measured at this moment, and messages that are anywhere."""

    measured: int
    dead: int
    reported: int
    in_work: int
    left: int


class Worker:
    """`oncue run sourcecode:app` in a process of its own."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        program = Path(sys.executable).with_name("oncue")
        command = [str(program) if program.exists() else "oncue", "run", "sourcecode:app"]
        environ = {**os.environ, "PYTHONPATH": str(HERE)}  # where it finds sourcecode.py
        with (folder / f"worker-{number}.log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        """End it in order, or at once if that takes too long."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Show:
    """What one sees while the workers work: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.shown = 0
        self.started = time.monotonic()
        self.bar = Progress(
            SpinnerColumn(),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("files · {task.fields[dead]} dead · {task.fields[reported]} in the report"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, dead=0, reported=0)

    def update(self, counts: Counts) -> None:
        self.bar.update(self.task, completed=counts.measured, dead=counts.dead, reported=counts.reported)
        step = counts.measured * 5 // max(self.total, 1)
        if not console.is_terminal and step > self.shown:
            self.shown = step
            self.say(f"{n(counts.measured)} of {n(self.total)} files, {counts.dead} of them dead letters")

    def say(self, text: str) -> None:
        """One line that stays."""
        console.print(f"[dim]{time.monotonic() - self.started:5.1f} s[/]  {text}")


async def main(folder: Path, library: Path) -> int:
    """Run the demo; the exit code."""
    console.print("[bold]OnCue demo:[/] measure the source files of Python's own standard library\n")
    console.print(f"  Python   {sys.version.split()[0]}, its library in {library}")
    console.print(f"  queues   {shown(folder / 'demo.db')}, a file; each step is on disk before it counts")
    console.print(f"  actors   {' → '.join(ACTORS)}, see {shown(HERE / 'sourcecode.py')}\n", soft_wrap=True)
    files = source_files(library)
    started = time.monotonic()
    transport = await open_transport(os.environ["ONCUE_URL"])
    try:
        killed = await work(folder, library, len(files), transport)
        seconds = time.monotonic() - started
        reasons = await dead_letters(transport)
    finally:
        await transport.close()
    console.print(f"\nDone in [bold]{seconds:.0f} seconds[/].\n")
    report(library)
    list_reasons(reasons, library)
    good = check(files, reasons)
    if killed:
        lost = query("SELECT count(*) FROM files WHERE attempt > 1")[0][0]
        console.print(f"  {n(lost)} of the files were in the killed worker's hands, and were done by another.")
    else:
        console.print("  All was done before there was a worker to kill.")
    url = f"--transport {os.environ['ONCUE_URL']}"
    console.print("\nLook for yourself: the queues are still there.\n", soft_wrap=True)
    for command in ("queue list", "dead list measure"):
        console.print(f"  [cyan]{shown(Path(sys.executable).with_name('oncue'))} {command} {url}[/]", soft_wrap=True)
    return 0 if good else 1


async def work(folder: Path, library: Path, total: int, transport: Transport) -> bool:
    """Send one message, start the workers, kill one, and wait until all is done; whether there was time to kill one."""
    async with sourcecode.app.connected(transport):
        await sourcecode.list_files.send(str(library), route=["measure", "summarise"])
    show = Show(total)
    show.say("sent one message to [bold]list_files[/], which will find the rest")
    workers = [Worker(number, folder) for number in range(1, WORKERS + 1)]
    for worker in workers:
        show.say(f"worker {worker.number} started, process {worker.process.pid}")
    victim: Worker | None = workers[0]
    progress, moved = None, time.monotonic()
    try:
        with show.bar:
            while (counts := await look(transport, total)).left:
                show.update(counts)
                if counts != progress:
                    progress, moved = counts, time.monotonic()
                elif time.monotonic() - moved > PATIENCE:
                    raise SystemExit(f"demo: no progress for {PATIENCE:.0f} seconds; the logs are in {folder}")
                if victim and counts.measured > total * KILL_AFTER and counts.in_work >= WORKERS:
                    victim.process.send_signal(signal.SIGKILL)
                    victim.process.wait()
                    show.say(f"[bold red]killed worker {victim.number}[/] with SIGKILL, in the middle of its work")
                    show.say("what it held comes back when its leases end, in 5 s")
                    workers.append(Worker(len(workers) + 1, folder))
                    show.say(f"worker {len(workers)} started, process {workers[-1].process.pid}")
                    victim = None
                await asyncio.sleep(0.1)
            show.update(counts)
        return victim is None
    finally:
        for worker in workers:
            worker.stop()


async def look(transport: Transport, total: int) -> Counts:
    """How far the work is, according to the store."""
    depths = [await transport.depth(f"asya-{actor}") for actor in ACTORS]
    dead = (await transport.depth("asya-measure-dlq")).ready or 0
    waiting = [(depth.ready or 0) + (depth.leased or 0) + (depth.delayed or 0) for depth in depths]
    measured = 0 if waiting[0] else total - waiting[1]
    return Counts(measured, dead, query("SELECT count(*) FROM files")[0][0], depths[1].leased or 0, sum(waiting))


def query(statement: str) -> list[tuple]:
    """Rows of the report that `summarise` writes."""
    with sourcecode.open_report() as rows:
        return rows.execute(statement).fetchall()


async def dead_letters(transport: Transport) -> dict[str, str]:
    """The files that could not be measured, with the reasons."""
    found = {}
    for actor in ACTORS:
        for letter in await list_dead(transport, f"asya-{actor}-dlq", limit=10_000):
            payload = json.loads(bytes(decode_envelope(letter.original.body).payload))
            found[payload["path"] if actor == "summarise" else payload] = letter.message or letter.type
    return found


def report(library: Path) -> None:
    """What was found."""
    largest = query("SELECT path, lines, functions FROM files ORDER BY lines DESC, path LIMIT 5")
    hardest = query("SELECT path, hardest, ways FROM files ORDER BY ways DESC, path LIMIT 5")
    imports = Counter(name for (names,) in query("SELECT imports FROM files") for name in names.split())
    table(
        "Largest files", ("lines", "functions", "file"), [(n(a), n(b), name(path, library)) for path, a, b in largest]
    )
    table(
        "Most complex functions",
        ("branches", "function", "file"),
        [(n(ways), function.rpartition(".")[2], name(path, library)) for path, function, ways in hardest],
    )
    table("Most imported", ("files", "module"), [(n(count), module) for module, count in imports.most_common(5)])


def list_reasons(reasons: dict[str, str], library: Path) -> None:
    """The dead letters."""
    if not reasons:
        console.print("[bold]Dead letters[/]: none, for every source file that came with this Python")
        console.print("parses. It has no test suite, which is where the files with errors are.\n")
        return
    rows = [(name(path, library), reason.rpartition(" (")[0] or reason) for path, reason in sorted(reasons.items())]
    table("Dead letters: files that do not parse, kept whole with their reasons", ("file", "reason"), rows)


def check(files: Sequence[Path], reasons: dict[str, str]) -> bool:
    """Compare the report with a count made without OnCue; whether they agree."""
    rows: dict[str, int] = dict(query("SELECT path, lines FROM files"))
    functions, complexity = query("SELECT sum(functions), sum(complexity) FROM files")[0]
    readable = [path for path in files if str(path) not in reasons]
    counted = {str(path): count_lines(path) for path in readable}
    facts = [
        (
            len(rows) + len(reasons) == len(files),
            f"{n(len(files))} files: {n(len(rows))} measured + {len(reasons)} dead",
        ),
        (
            not rows.keys() & reasons.keys() and rows.keys() == counted.keys(),
            "each file once, none lost, none invented",
        ),
        (rows == counted, f"{n(sum(rows.values()))} lines, file by file"),
        (not any(parses(path) for path in reasons), "none of the dead letters parses"),
    ]
    console.print("[bold]Checked against a direct count[/], made without OnCue\n")
    for good, fact in facts:
        console.print(f"  {'[green]✓[/]' if good else '[red]✗ NOT SO:[/]'} {fact}")
    console.print(f"\n  {n(functions)} functions, {n(complexity)} ways through them.")
    return all(good for good, _ in facts)


def source_files(library: Path) -> list[Path]:
    """The library's source files, found without any actor."""
    found = []
    for folder, folders, names in os.walk(library):
        folders[:] = [each for each in folders if each not in {"site-packages", "dist-packages"}]
        found += [Path(folder, each) for each in names if each.endswith(".py")]
    return [path for path in found if path.is_file()]


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def parses(path: str) -> bool:
    try:
        ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return False
    return True


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table; what is made of numbers stands on the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = max(20, console.width - sum(widths[:-1]) - 2 * len(widths[:-1]))
    console.print(f"[bold]{title}[/]")
    for number, row in enumerate([headings, *rows]):
        cells = [
            cell.rjust(width) if rows[0][place].replace(",", "").isdigit() else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row[:-1], widths, strict=False))
        ]
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
        console.print("  ".join([*cells, last]), style=None if number else "dim", markup=False, soft_wrap=True)
    console.print()


def n(number: int) -> str:
    return f"{number:,}"


def name(path: str, library: Path) -> str:
    return str(Path(path).relative_to(library))


def shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def launch(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".oncue/demo"), help="where to work (default: %(default)s)")
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_path("stdlib")), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    url = f"sqlite:///{options.folder}/demo.db"
    os.environ.update(ONCUE_URL=url, DEMO_REPORT=str(options.folder.resolve() / "report.db"), PYTHONWARNINGS="ignore")
    sourcecode.make_report()
    return asyncio.run(main(options.folder, options.library))


if __name__ == "__main__":
    try:
        sys.exit(launch())
    except KeyboardInterrupt:
        console.print("\nStopped. What was not done is still in the queue; `make demo` starts afresh.")
        sys.exit(130)
