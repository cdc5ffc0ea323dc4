"""One replica of an actor: a runtime in a process of its own, and what takes messages to it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from oncue.local.launch import program_words, runtime_words
from oncue.local.plan import Plan
from oncue.local.processes import Kept, Lines, surroundings
from oncue.local.settings import SOCKET
from oncue.stop import Stop, unless
from oncue.workloads.socket import READY_FILE, load_error

_LOOKS = ((2.0, 0.01), (10.0, 0.05))
"""A runtime that is just starting is looked for ever so often (s) during its first seconds."""
_SELDOM = 0.25


Front = Callable[[Stop], Awaitable[None]]
"""What takes messages to the runtime, until told to stop; may be cancelled."""


class Replica:
    """One replica over its life, in the folder `place`, which is made and removed.

    `early` says that `front` may be started before the runtime is there, because that takes it some time.
    """

    def __init__(
        self, plan: Plan, number: int, place: Path, front: Front, lines: Lines, *, early: bool = False
    ) -> None:
        self.plan = plan
        self.number = number
        self.stop = Stop()
        self._place = place
        self._front = front
        self._early = early
        self.runtime = Kept(
            f"{plan.name}/{number}",
            runtime_words(plan.python, f"{plan.name}/{number}"),
            environment=surroundings({**plan.environment, **_socket(place)}),
            folder=plan.folder,
            lines=lines,
            died=self._why,
        )

    @property
    def ready(self) -> bool:
        """Whether its handler is loaded. Blocks for a look at a file."""
        return self.runtime.pid is not None and (self._place / READY_FILE).exists()

    @property
    def state(self) -> str:
        """`starting`, `running`, `failing` or `stopping`."""
        if self.stop.requested:
            return "stopping"
        return "running" if self.ready else "failing" if self.runtime.error else "starting"

    async def run(self) -> None:
        """Work until told to stop, and leave nothing behind. Raises and is cancelled as `Pump.run`."""
        self._place.mkdir(mode=0o700)
        keeping = asyncio.create_task(self.runtime.run())
        try:
            if not self._early:
                await unless(self.stop, self._readiness())
            await self._front(self.stop)
        finally:
            self.runtime.end()
            try:
                await keeping
            finally:
                shutil.rmtree(self._place, ignore_errors=True)

    async def _readiness(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self.ready:
            lived = loop.time() - began
            await asyncio.sleep(next((pause for limit, pause in _LOOKS if lived < limit), _SELDOM))

    def _why(self) -> str:
        (self._place / READY_FILE).unlink(missing_ok=True)
        failure = load_error(self._place)
        return failure.message if failure is not None else ""


class SidecarProcess:
    """`oncue sidecar` as a process of its own, as in a pod."""

    def __init__(self, name: str, environment: Mapping[str, str], lines: Lines, grace: float) -> None:
        self._grace = grace
        self._process = Kept(
            name,
            program_words("sidecar"),
            environment=surroundings(environment),
            folder=Path.cwd(),
            lines=lines,
            patience=grace + 5.0,
        )

    async def run(self, stop: Stop) -> None:
        """Keep it running until told to stop; it then finishes by itself what it has begun."""
        keeping = asyncio.create_task(self._process.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
            self._process.end()
            forced = asyncio.create_task(stop.wait_forced())
            await asyncio.wait([keeping, forced], return_when=asyncio.FIRST_COMPLETED)
            forced.cancel()
            self._process.end()  # a second signal: at once
            await keeping
        finally:
            keeping.cancel()
            stopping.cancel()
            await asyncio.gather(keeping, stopping, return_exceptions=True)


def _socket(place: Path) -> Mapping[str, str]:
    return {"ONCUE_SOCKET_DIR": str(place), "ONCUE_SOCKET_NAME": SOCKET, "ONCUE_SOCKET_CHMOD": "0o600"}
