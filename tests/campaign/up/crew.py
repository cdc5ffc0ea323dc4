"""`oncue up` and what it starts, and what is done to them at random moments."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from oncue.local.launch import program_words
from oncue.local.state import NoAnswer, ask, find

from . import handlers, store

ACTORS = {
    "carry": "handlers.carry",
    "slow": "handlers.slow",
    "crash": "handlers.crash",
    "wide": "handlers.Wide.wait",
}
STORE = Path(".oncue/oncue.db")
PATIENCE = 40.0
LINGER = 8.0
"""Seconds within which everything has to be gone that a killed supervisor had started."""


class Fault(Exception):  # what a campaign looks for
    """Something that was promised and is not so."""


class Crew:
    """The supervisor in `folder`, started again whenever it was killed."""

    def __init__(self, folder: Path, chance: random.Random, *, isolate: bool) -> None:
        self.folder = folder
        self.deeds: Counter[str] = Counter()
        self._chance = chance
        self._isolate = isolate
        self._log = (folder / "up.log").open("ab")
        self._up: subprocess.Popen[bytes] | None = None
        shutil.copy(handlers.__file__, folder / "handlers.py")
        (folder / "actors.yaml").write_text("".join(map(_manifest, ACTORS)), encoding="utf-8")

    async def begin(self) -> None:
        """Start the supervisor, and return when it has started."""
        words = program_words(
            "up", *(["--isolate"] if self._isolate else [])
        )  # gone with this process, even if that is killed
        environ = {name: text for name, text in os.environ.items() if not name.startswith(("ONCUE_", "ASYA_"))}
        before = self._said("up.started")
        self._up = subprocess.Popen(
            words, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        await self._until(lambda: self._said("up.started") > before or self._ended, PATIENCE, "oncue up did not start")
        if self._ended:
            raise Fault(f"oncue up ended by itself with {self._up.returncode}: {self.last_words()}")

    async def end(self) -> None:
        """Stop it in order; nothing may be left."""
        await self._stop()
        self._log.close()

    def kill(self) -> None:
        """For the case that all is over anyway."""
        if self._up is not None:
            self._up.kill()
            self._up.wait()

    async def deed(self) -> None:
        """Do something bad to somebody."""
        if self._ended:
            assert self._up is not None
            raise Fault(f"oncue up ended by itself with {self._up.returncode}: {self.last_words()}")
        deeds = {
            "kill worker": (8, lambda: self._kill(self._workers())),
            "kill runtime": (6, lambda: self._kill(self._children("runtime.py"))),
            "kill supervisor": (1, self._kill_supervisor),
            "stop supervisor": (0.5, self._restart),
        }
        if self._isolate:
            deeds["kill sidecar"] = (4, lambda: self._kill(self._children("oncue sidecar")))
        [name] = self._chance.choices(list(deeds), [often for often, _ in deeds.values()])
        self.deeds[name] += 1
        await deeds[name][1]()

    async def look(self) -> None:
        """See that the supervisor answers, and knows all of its actors."""
        running = find(self.folder / ".oncue")
        if running is None:
            raise Fault(f"oncue up does not hold its folder: {self.last_words()}")
        try:
            reports = await asyncio.to_thread(ask, running)
        except NoAnswer as error:
            raise Fault(f"{error}: {self.last_words()}") from None
        if {each.name for each in reports} != {*ACTORS, "happy-end", "error-end"}:
            raise Fault(f"oncue up reports {reports}")

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self._text().splitlines()[-15:])

    # Deeds

    async def _kill(self, pids: list[int]) -> None:
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(sorted(pids)), signal.SIGKILL)

    async def _kill_supervisor(self) -> None:
        assert self._up is not None
        self._up.kill()
        self._up.wait()
        await self._until(lambda: not self.left(), LINGER, "processes outlive their supervisor")
        if self._chance.random() < 0.5:
            store.run_leases_out(self.folder / STORE)
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        await self.begin()

    async def _restart(self) -> None:
        await self._stop()
        await self.begin()

    async def _stop(self) -> None:
        assert self._up is not None
        self._up.terminate()
        await self._until(lambda: self._ended, PATIENCE, "oncue up does not stop")
        if self._up.returncode:
            raise Fault(f"oncue up stopped with {self._up.returncode}: {self.last_words()}")
        await self._until(lambda: not self.left(), 1.0, "processes outlive their supervisor")

    # Looking

    def left(self) -> list[str]:
        """The command lines of what the supervisor has started and that still runs."""
        assert self._up is not None
        return [args for _, _, args in _processes() if f"tied.py {self._up.pid} " in args]

    @property
    def _ended(self) -> bool:
        return self._up is not None and self._up.poll() is not None

    def _children(self, kind: str) -> list[int]:
        assert self._up is not None
        return [pid for pid, parent, args in _processes() if parent == self._up.pid and kind in args]

    def _workers(self) -> list[int]:
        runtimes = self._children("runtime.py")
        return [pid for pid, parent, _ in _processes() if parent in runtimes]

    def _said(self, text: str) -> int:
        return self._text().count(text)

    def _text(self) -> str:
        return (self.folder / "up.log").read_text(encoding="utf-8", errors="replace")

    async def _until(self, right: object, within: float, otherwise: str) -> None:
        assert callable(right)
        limit = time.monotonic() + within
        while not right():
            if time.monotonic() > limit:
                raise Fault(f"{otherwise}: {self.left()}\n{self.last_words()}")
            await asyncio.sleep(0.05)


def _manifest(name: str) -> str:
    """Scaled from none; `wide` has a coroutine handler with eight at a time, and `crash` two processes in a replica."""
    more = {"wide": "{name: ONCUE_CONCURRENCY, value: '8'}", "crash": "{name: ONCUE_PROCESSES, value: '2'}"}.get(name)
    return f"""
apiVersion: asya.sh/v1alpha1
kind: AsyncActor
metadata: {{name: {name}}}
spec:
  transport: sqs
  timeout: {{processing: 20, gracefulShutdown: 5}}
  scaling: {{enabled: true, minReplicas: 0, maxReplicas: 2, queueLength: 20, pollingInterval: 1, cooldownPeriod: 3}}
  workload:
    template:
      spec:
        containers:
          - name: asya-runtime
            env:
              - {{name: ASYA_HANDLER, value: {ACTORS[name]}}}
              - {more or "{name: ONCUE_PROCESSES, value: '1'}"}
---"""


def _processes() -> list[tuple[int, int, str]]:
    """Process, parent and command line of everything that runs."""
    listing = ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="]
    found = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 3) for line in found]
    return [(int(row[0]), int(row[1]), row[3]) for row in rows if len(row) == 4 and not row[2].startswith("Z")]
