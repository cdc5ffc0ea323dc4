"""The demo (`make demo`): measure every source file of your Python's own standard library, and lose none.

`oncue up` runs the actors of actors.yaml, none of which has a process before there is something to do. In the middle of the
work one of their processes is killed, without warning and on purpose. At the end every file is a row of the report, or a
failed result and a dead letter, which is checked against a count made without OnCue. The queues are one file, and nothing
else is installed or running.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from oncue.local.state import ask, find

HERE = Path(__file__).parent
ACTORS = ("find", "measure", "summarise")
VICTIM = "measure"
KILL_AFTER = 0.25
"""How much of the work is done when a process is killed."""
PATIENCE = 60.0
"""Seconds without progress after which the demo gives up."""

console = Console(highlight=False, soft_wrap=True)
n = report.n


class DemoError(Exception):
    """It cannot go on, and this is why."""


class Counts(NamedTuple):
    """How far the work is: results, the failed ones among them, messages that are anywhere, attempts of `measure` that
    failed, and the replicas of each actor."""

    ended: int
    failed: int
    left: int
    errors: int
    replicas: Mapping[str, int]


class Up:
    """`oncue up` with the demo's manifests, in a process of its own that works in `folder`. Leaving it ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*oncue(), "up", str(HERE)], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for the demo, which passes it on
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is ending already, and has to see the end of what it started
        self.process.terminate()
        if kind is not None:
            time.sleep(0.5)  # two signals in quick succession count as one
            self.process.terminate()  # give back at once what has begun
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        if kind is None and code:
            raise DemoError(f"oncue up ended with {code}; its log is {self.log}")

    def wait(self) -> None:
        """Wait until it has made its queues."""
        while not any(b"up.started" in line for line in self.log.read_bytes().splitlines()):
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        """Raise `DemoError` if it has ended."""
        if self.process.poll() is not None:
            raise DemoError(f"oncue up has ended with {self.process.returncode}; its log is {self.log}")

    def counts(self) -> Counts:
        """How it is at this moment, as `oncue ps` would show."""
        self.check()
        running = find(self.folder / ".oncue")
        if running is None:
            raise DemoError(f"oncue up has ended; its log is {self.log}")
        actors = {each.name: each for each in ask(running)}
        failed = actors["error-end"].done or 0
        left = sum((each.ready or 0) + (each.leased or 0) + (each.delayed or 0) for each in actors.values())
        replicas = {name: actors[name].replicas for name in ACTORS}
        return Counts((actors["happy-end"].done or 0) + failed, failed, left, actors[VICTIM].errors or 0, replicas)

    def workers(self, actor: str) -> list[tuple[int, str]]:
        """The processes that run the handler of an actor, each with the name of its replica."""
        listing = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
        listed = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()
        rows = [line.split(None, 2) for line in listed]
        parents = {pid for pid, parent, _ in rows if int(parent) == self.process.pid}
        found = [(int(pid), args.split()[-1]) for pid, parent, args in rows if parent in parents]
        return [(pid, name) for pid, name in found if name.startswith(f"{actor}/")]


class Show:
    """What one sees while the actors work: a bar on a terminal, and lines everywhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.step = 0
        self.started = time.monotonic()
        self.replicas = dict.fromkeys(ACTORS, 0)
        self.bar = Progress(
            SpinnerColumn(),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("files · {task.fields[failed]} of them failed · {task.fields[replicas]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, failed=0, replicas="")

    def update(self, counts: Counts) -> None:
        for actor, before in self.replicas.items():
            if counts.replicas[actor] != before:
                self.say(f"{actor}: {before} → {counts.replicas[actor]} replicas")
        self.replicas = dict(counts.replicas)
        shown = ", ".join(f"{number} {actor}" for actor, number in self.replicas.items() if number) or "all asleep"
        self.bar.update(self.task, completed=counts.ended, failed=counts.failed, replicas=shown)
        step = counts.ended * 5 // max(self.total, 1)
        if not console.is_terminal and step > self.step:
            self.step = step
            self.say(f"{n(counts.ended)} of {n(self.total)} files, {counts.failed} of them failed")

    def say(self, text: str) -> None:
        """One line that stays."""
        console.print(f"[dim]{time.monotonic() - self.started:5.1f} s[/]  {text}")


def main(folder: Path, library: Path) -> int:
    """Run the demo; the exit code."""
    console.print("[bold]OnCue demo:[/] measure the source files of Python's own standard library\n")
    console.print(f"  Python   {sys.version.split()[0]}, its library in {library}")
    console.print(f"  queues   {shown(folder / '.oncue/oncue.db')}, a file, flushed to disk at each step")
    console.print(f"  actors   {' → '.join(ACTORS)}, functions in {shown(HERE / 'sourcefiles.py')};")
    console.print(f"           [bold]oncue up[/] runs them as {shown(HERE / 'actors.yaml')} says\n")
    files = report.source_files(library)
    started = time.monotonic()
    killed, again = work(folder, library, len(files))
    console.print(f"\nDone in [bold]{time.monotonic() - started:.0f} seconds[/].\n")
    ended = report.read(folder / ".oncue/oncue.db")
    report.show(console, ended, library)
    good = report.check(console, files, ended)
    if not killed:
        console.print("  All was done before there was a process to kill.")
    elif again:
        console.print(
            f"  {again} of them {'was' if again == 1 else 'were'} in the killed process's hands, and done again."
        )
    else:
        console.print("  The killed process had just finished one, and was about to begin the next.")
    console.print("\nLook for yourself: the queues and the results are still there.\n")
    console.print(f"  [cyan]cd {shown(folder)}[/]")
    for command in ("dead list measure", "result list --status failed"):
        console.print(f"  [cyan]{program()} {command}[/]")
    return 0 if good else 1


def work(folder: Path, library: Path, total: int) -> tuple[bool, int]:
    """Send one message, let the actors work, kill one of their processes, and wait until all is done and asleep; whether there
    was one to kill, and how many messages were tried again."""
    show = Show(total)
    with show.bar, Up(folder) as up:
        up.wait()
        show.say(f"oncue up has started, process {up.process.pid}; no actor has a process yet")
        call("send", "find", json.dumps(str(library)), "--route", "measure,summarise", folder=folder)
        show.say("sent one message to [bold]find[/], which will find the rest")
        killed = False
        before, moved = None, time.monotonic()
        counts = up.counts()
        while counts.left or any(counts.replicas.values()):
            show.update(counts)
            if counts != before:
                before, moved = counts, time.monotonic()
            elif time.monotonic() - moved > PATIENCE:
                raise DemoError(f"no progress for {PATIENCE:.0f} seconds; the log is {up.log}")
            if not killed and counts.ended > total * KILL_AFTER and counts.replicas[VICTIM]:
                killed = kill(up, show)
            time.sleep(0.1)
            counts = up.counts()
        show.update(counts)
        show.say("every queue is empty, and no actor has a process any more")
        return killed, counts.errors - counts.failed


def kill(up: Up, show: Show) -> bool:
    """Kill one of the processes that measure; whether there was one."""
    workers = up.workers(VICTIM)
    if not workers:
        return False
    pid, replica = random.choice(workers)
    os.kill(pid, signal.SIGKILL)
    show.say(f"[bold red]killed process {pid} of {replica}[/] with SIGKILL, in the middle of work")
    return True


def oncue() -> Sequence[str]:
    """The command line of OnCue for the Python that runs this."""
    return [sys.executable, "-m", "oncue"]


def call(*words: str, folder: Path) -> str:
    """What another command in the same folder prints. Raise `CalledProcessError` when it fails."""
    return subprocess.run([*oncue(), *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def program() -> str:
    """How to call OnCue from anywhere."""
    beside = Path(sys.executable).with_name("oncue")
    return str(beside) if beside.exists() else "oncue"


def shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def launch(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".oncue/demo"), help="where to work (default: %(default)s)")
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_path("stdlib")), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    if find(folder / ".oncue") is not None:
        raise DemoError(f"another runs in {folder}; `oncue down` there ends it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith(("ONCUE_", "ASYA_"))]:
        del os.environ[name]  # the demo has its own queues, whatever the shell is set up for
    return main(folder, options.library.resolve())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(launch())
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        console.print("\nStopped. What was not done is still in the queues; `make demo` starts afresh.")
        sys.exit(130)
