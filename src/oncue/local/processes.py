"""One child process that is kept running: started, started again with growing pauses when it dies, and ended.

What it prints is handed on line by line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from oncue.core.retry import RetryPolicy
from oncue.local.child import Child

_log = logging.getLogger("oncue.local")

_AGAIN = RetryPolicy(max_attempts=1, base=0.2, factor=2.0, cap=30.0)
_LIVED = 10.0
"""A process that lived this long starts again after the shortest pause."""
_REST = 1.0
"""Seconds for what a process said last to arrive; something that it has left behind may keep the pipe open."""
_LONGEST_LINE = 2**16

Lines = Callable[[str], None]
"""Is told each line that a process prints, without its end."""


class Kept:
    """A process over all its lives. `name` is what it is called in the log."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        lines: Lines,
        died: Callable[[], str] = lambda: "",
        patience: float = 5.0,
    ) -> None:
        """`died` is asked after each death why, if anybody knows. `patience`: seconds that it gets to end when it is told to."""
        self.name = name
        self.error = ""
        self._words = words
        self._environment = environment
        self._folder = folder
        self._lines = lines
        self._died = died
        self._patience = patience
        self._child: Child | None = None
        self._ending = asyncio.Event()
        self._sooner = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process that runs at this moment."""
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def run(self) -> None:
        """Keep it running until `end` is called. Cancelling this kills it."""
        tries = 0
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                how = await self._live()
            except OSError as error:
                how = f"cannot be started: {error.strerror or error}"
            if self._ending.is_set():
                return
            tries = 1 if time.monotonic() - began > _LIVED else tries + 1
            pause = _AGAIN.backoff(tries)
            self.error = self._died() or how
            shown = {"process": self.name, "exit": how, "again_in": pause}  # what it said itself stands above this
            _log.error("process.died", extra={"fields": shown})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sooner.wait()
            self._sooner.clear()

    def end(self) -> None:
        """Have it end in order, or by force if that takes too long; `run` returns then. May be called twice."""
        self._ending.set()
        self._sooner.set()
        self.tell(signal.SIGTERM)

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._child is not None:
            self._child.tell(number)

    async def _live(self) -> str:
        """One life, from start to end; how it ended."""
        child = self._child = Child(self._words, environment=self._environment, folder=self._folder)
        reading = asyncio.create_task(self._read(child))
        try:
            if self._ending.is_set():
                self.tell(signal.SIGTERM)
            code = await self._ended(child)
            await asyncio.wait([reading], timeout=_REST)
        except BaseException:
            await self._kill(child)
            raise
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            child.close()
        return _how(code)

    async def _ended(self, child: Child) -> int:
        waiting = asyncio.create_task(child.wait())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait([waiting], timeout=self._patience)
            if not done:
                _log.warning("process.killed", extra={"fields": {"process": self.name, "after": self._patience}})
                await self._kill(child)
            return await waiting
        finally:
            for task in (waiting, ending):
                task.cancel()
            await asyncio.gather(waiting, ending, return_exceptions=True)

    async def _kill(self, child: Child) -> None:
        self.tell(signal.SIGKILL)
        await asyncio.shield(child.wait())

    async def _read(self, child: Child) -> None:
        async with child.output() as source:
            rest = b""
            while piece := await source.read(_LONGEST_LINE):
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._lines(line.decode("utf-8", "replace"))
            if rest:
                self._lines(rest.decode("utf-8", "replace"))


def surroundings(more: Mapping[str, str]) -> Mapping[str, str]:
    """This process's environment without OnCue's and Asya's own settings, and `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ONCUE_", "ASYA_"))} | {**more}


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
