"""The processes of a campaign, and what is done to them at random moments."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from .ledger import Ledger

ROOT = Path(__file__).parents[2]
WORKERS = 3
SENDERS = 2
MOST_WAITING = 2000


class Hand:
    """One process of the crew, and the task that hears what it says."""

    def __init__(self, process: Process, hearing: asyncio.Task[None]) -> None:
        self.process = process
        self.hearing = hearing

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self) -> None:
        """Wait until it has ended and all it said was heard."""
        await self.process.wait()
        await self.hearing


@asynccontextmanager
async def crew_on(path: Path, ledger: Ledger, chance: random.Random, *, loud: bool = False) -> AsyncIterator[Crew]:
    """A crew at work on the store at `path`; none of it is left at the end of the block."""
    crew = Crew(path, ledger, chance, loud=loud)
    try:
        await crew.begin()
        yield crew
    finally:
        await crew.end()


class Crew:
    """Workers and senders on one store."""

    def __init__(self, path: Path, ledger: Ledger, chance: random.Random, *, loud: bool) -> None:
        self.deeds: Counter[str] = Counter()
        self.killed = 0
        self._path = path
        self._url = f"sqlite:///{path}"
        self._ledger = ledger
        self._chance = chance
        self._errors = None if loud else DEVNULL
        self._all: list[Hand] = []
        self._workers: list[Hand] = []
        self._senders: list[Hand] = []
        self._sessions = 0

    async def begin(self) -> None:
        """Start everybody."""
        for _ in range(WORKERS):
            self._workers.append(await self._worker())
        for _ in range(SENDERS):
            self._senders.append(await self._sender())

    async def end(self) -> None:
        """Kill whoever still runs; may be called twice."""
        for hand in self._all:
            hand.signal(signal.SIGKILL)
        for hand in self._all:
            await hand.ended()

    @property
    def done(self) -> str:
        """What was done so far, for people."""
        deeds = ", ".join(f"{name} {number}" for name, number in sorted(self.deeds.items()))
        return f"{self.killed} workers killed ({deeds})"

    async def deed(self) -> None:
        """Do something bad to somebody."""
        deeds = {
            "kill workers": (5, self._kill_workers),
            "stop worker": (1, lambda: self._replace(self._workers, self._worker, signal.SIGTERM)),
            "kill sender": (2, lambda: self._replace(self._senders, self._sender, signal.SIGKILL)),
            "freeze": (2, self._freeze),
            **self._deeds_to_store(),
        }
        [name] = self._chance.choices(list(deeds), [often for often, _ in deeds.values()])
        self.deeds[name] += 1
        await deeds[name][1]()

    def _deeds_to_store(self) -> dict[str, tuple[float, Callable[[], Awaitable[None]]]]:
        """What is done to the store itself, and how often."""
        return {"keep the file": (1, self._keep_file)}

    async def end_sending(self) -> None:
        """Let the senders finish what they are at."""
        for hand in self._senders:
            hand.signal(signal.SIGTERM)
        for hand in self._senders:
            await hand.ended()
        self._senders.clear()

    async def _kill_workers(self) -> None:
        """One of them, or several at once."""
        places = self._chance.sample(range(WORKERS), self._chance.choice((1, 1, 2, WORKERS)))
        self.killed += len(places)
        for place in places:
            self._workers[place].signal(signal.SIGKILL)
        for place in places:
            await self._workers[place].ended()
        for place, hand in zip(places, await asyncio.gather(*(self._worker() for _ in places)), strict=True):
            self._workers[place] = hand

    async def _replace(self, hands: list[Hand], another: Callable[[], Awaitable[Hand]], number: int) -> None:
        place = self._chance.randrange(len(hands))
        hands[place].signal(number)
        await hands[place].ended()
        hands[place] = await another()

    async def _freeze(self) -> None:
        hand = self._chance.choice(self._workers)
        hand.signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.2, 3.0))
        hand.signal(signal.SIGCONT)

    async def _keep_file(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=10)
        try:
            connection.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(self._chance.uniform(0.05, 1.5))
            connection.execute("ROLLBACK")
        finally:
            connection.close()

    async def _worker(self) -> Hand:
        return await self._start(["worker"], lambda _line: None)

    async def _sender(self) -> Hand:
        session = self._sessions
        self._sessions += 1
        return await self._start(
            ["sender", str(session), str(MOST_WAITING)], lambda line: self._ledger.acknowledge(session, int(line))
        )

    async def _start(self, arguments: list[str], heard: Callable[[str], None]) -> Hand:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.campaign.app", *arguments),
            cwd=ROOT,
            env={**os.environ, "ONCUE_URL": self._url},
            stdout=PIPE,
            stderr=self._errors,
        )
        ready = asyncio.Event()

        async def hear() -> None:
            assert process.stdout is not None
            async for line in process.stdout:
                if line == b"ready\n":
                    ready.set()
                elif line.endswith(b"\n"):
                    heard(line.decode())
            ready.set()

        hand = Hand(process, asyncio.create_task(hear()))
        self._all = [hand, *(other for other in self._all if other.process.returncode is None)]
        # Sometimes the next deed is done before it is ready.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._chance.choice((0.2, 10, 10))):
                await ready.wait()
        return hand
