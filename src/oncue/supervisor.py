"""Several processes that each run an app: started, watched, started again when one dies, and ended with their parent.

Each child is the same program. Its standard input is a pipe that only the parent holds, so that it notices the parent's end
however that came; what it has to tell comes back over another.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TextIO

import msgspec

from oncue.core.retry import RetryPolicy
from oncue.worker import Counts

_log = logging.getLogger("oncue.worker")

_AGAIN = RetryPolicy(max_attempts=1, base=0.5, factor=2.0, cap=30.0)
_LIVED = 60.0
"""A process that lived this long starts again after the shortest pause."""
_PATIENCE = 10.0
"""Seconds beyond the grace period after which a child that does not end is killed."""

_REST = 1.0
"""Seconds for what a child said last to arrive."""

Command = Callable[[int, int], Sequence[str]]
"""The words that start child number `index`, which reports to the open file with this number."""


class Loaded(msgspec.Struct, frozen=True):
    """What a process runs: its actors, where their messages are, and where it answers for its health."""

    url: str
    actors: Sequence[tuple[str, str, int]]
    address: str = ""


class Report(msgspec.Struct, omit_defaults=True):
    """What a child tells its parent: what it has loaded, and what it has done so far."""

    counts: Counts
    loaded: Loaded | None = None
    working: bool = False
    finished: int = 0
    released: int = 0


_decode = msgspec.json.Decoder(Report).decode


class _Child:
    """One of the processes, over all its lives."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.before = Counts()
        self.report = Report(Counts())
        self.loaded = asyncio.Event()
        self.worked = False

    def counts(self) -> Counts:
        return self.before.plus(self.report.counts)


class Supervisor:
    """Runs `count` children until told to stop."""

    def __init__(
        self,
        command: Command,
        count: int,
        grace: float,
        *,
        environment: Mapping[str, str],
        write: Callable[[TextIO, str], object] | None,
    ) -> None:
        """`write` is given what children print, in whole lines; without it they print for themselves."""
        self._environment = environment
        self._command = command
        self._grace = grace
        self._write = write
        self._children = [_Child(index) for index in range(count)]
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._failed: int | None = None
        self._signals = 0
        self._forced_by: int | None = None

    @property
    def stopping(self) -> bool:
        """Whether the children were told to end."""
        return self._stopping.is_set()

    def counts(self) -> Counts:
        """What all children have done, those that died included."""
        total = Counts()
        for child in self._children:
            total = total.plus(child.counts())
        return total

    def ended(self) -> tuple[int, int]:
        """How many messages were finished and how many given back while the children ended."""
        reports = [child.report for child in self._children]
        return sum(each.finished for each in reports), sum(each.released for each in reports)

    async def run(self, loaded: Callable[[Loaded], None]) -> int:
        """Run until told to stop; return the exit code. `loaded` is told what the first child has loaded.

        A child that ends by itself before it has ever worked, as it does when the app cannot be loaded, ends all: its exit
        code is returned and it has said what is wrong.
        """
        first, *others = self._children
        async with asyncio.TaskGroup() as tasks:
            keepers = [tasks.create_task(self._keep(first))]
            waiting = asyncio.create_task(first.loaded.wait())
            stopped = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([waiting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if first.report.loaded is not None:
                loaded(first.report.loaded)
            for child in others:
                if not self._stopping.is_set():
                    keepers.append(tasks.create_task(self._keep(child)))
            await self._stopping.wait()
            await self._see_them_end(keepers)
            for task in (waiting, stopped):
                task.cancel()
        if self._failed is not None:
            return self._failed
        return 0 if self._forced_by is None else 128 + self._forced_by

    def tell(self, number: int) -> None:
        """Pass a signal on: the first lets the children finish what is in flight, the second does not."""
        self._signals += 1
        if self._signals > 1:
            self._forced_by = number
            self._forced.set()
        self._stopping.set()
        for child in self._children:
            _signal(child.process)

    async def _keep(self, child: _Child) -> None:
        """Run a child, and again when it dies, with growing pauses."""
        tries = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._live(child)
            if self._stopping.is_set():
                return
            if code in {1, 2} and not child.worked:
                self._failed = code
                self._stopping.set()
                for other in self._children:
                    _signal(other.process)
                return
            tries = 1 if time.monotonic() - began > _LIVED else tries + 1
            pause = _AGAIN.backoff(tries)
            died = {"process": child.index + 1, "exit": _name_of(code), "again_in": pause}
            _log.error("worker.died", extra={"fields": died})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _live(self, child: _Child) -> int:
        """One life of a child, from start to end."""
        child.before, child.report = child.counts(), Report(Counts())
        child.before.in_flight, child.before.waiting = 0, None
        reading, writing = os.pipe()
        pipe = None if self._write is None else asyncio.subprocess.PIPE
        try:
            process = child.process = await asyncio.create_subprocess_exec(
                *self._command(child.index, writing),
                stdin=asyncio.subprocess.PIPE,
                stdout=pipe,
                stderr=pipe,
                pass_fds=(writing,),
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, who passes it on
                env=self._environment,
            )
        finally:
            os.close(writing)
        if self._signals:
            _signal(process)
        listening = [asyncio.create_task(self._listen(child, reading))]
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if source is not None and self._write is not None:
                listening.append(asyncio.create_task(_forward(source, target, self._write)))
        try:
            code = await process.wait()
            await asyncio.wait(listening, timeout=_REST)  # a grandchild may keep the pipes open
        finally:
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
        child.loaded.set()
        return code

    async def _listen(self, child: _Child, reading: int) -> None:
        reader = asyncio.StreamReader(limit=2**20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
        )
        try:
            while line := await reader.readline():
                with suppress(msgspec.DecodeError):  # a line that the child's death cut off
                    child.report = _decode(line)
                    child.worked = child.worked or child.report.working
                    child.loaded.set()
        finally:
            transport.close()

    async def _see_them_end(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Return when all children have ended; kill those that do not in time."""
        clock = asyncio.get_running_loop().time
        forced = asyncio.create_task(self._forced.wait())
        deadline = clock() + self._grace + _PATIENCE
        pending = set(keepers)
        while pending:
            waited = pending if forced.done() else {*pending, forced}
            done, _ = await asyncio.wait(waited, timeout=deadline - clock(), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            if forced in done:
                deadline = min(deadline, clock() + _PATIENCE)
            pending -= done
        forced.cancel()
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                _log.error("worker.killed", extra={"fields": {"process": child.index + 1}})
                child.process.kill()


def _signal(process: Process | None) -> None:
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()


def _name_of(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


async def _forward(source: asyncio.StreamReader, target: TextIO, write: Callable[[TextIO, str], object]) -> None:
    rest = b""
    while piece := await source.read(2**16):
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            write(target, "".join(line.decode("utf-8", "replace") + "\n" for line in lines))
    if rest:
        write(target, rest.decode("utf-8", "replace") + "\n")


def watch_parent(gone: Callable[[], None], patience: float) -> None:
    """In a child: call `gone`, in a thread of its own, when the parent has ended; end this process `patience` seconds later."""
    line = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # the app's own code shall not read from the pipe
    os.close(null)

    def wait() -> None:
        while os.read(line, 1):
            continue
        gone()
        time.sleep(patience)
        os._exit(1)

    threading.Thread(target=wait, name="oncue-parent", daemon=True).start()
