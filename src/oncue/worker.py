"""One process that runs an app: connects however long that takes, works until told to stop, and answers for its health.

Only wiring; the command line calls it. What is shown to people is done there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from oncue.app import App
from oncue.core.errors import ConnectionLostError, QueueNotFoundError
from oncue.core.redact import redact_url
from oncue.core.retry import RetryPolicy
from oncue.core.settings import Settings
from oncue.events import (
    Event,
    LeaseLost,
    MessageDead,
    MessageDone,
    MessageReleased,
    MessageRetried,
    MessageStarted,
    PumpStarted,
    PumpStopped,
    log_events,
)
from oncue.health import Health
from oncue.pump import Stop
from oncue.stop import abandoned_at
from oncue.transports import open_transport
from oncue.transports.base import Transport

if TYPE_CHECKING:
    from oncue.metrics import QueueDepth

_log = logging.getLogger("oncue.worker")

_BACK_OFF = RetryPolicy(max_attempts=1, base=0.2, factor=2.0, cap=15.0)
_LOOK = 1.0
"""Seconds between looks at how much waits; each may take a twentieth of the time until the next."""


class Counts(msgspec.Struct):
    """What became of the messages of a process; `waiting` is None where nobody looked, or nobody can tell."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0
    lost: int = 0
    in_flight: int = 0
    waiting: int | None = None

    def plus(self, other: Counts) -> Counts:
        """The sum of two processes' counts; both see the same queues, so `waiting` is not added."""
        return Counts(
            self.done + other.done,
            self.retried + other.retried,
            self.dead + other.dead,
            self.released + other.released,
            self.lost + other.lost,
            self.in_flight + other.in_flight,
            self.waiting if other.waiting is None else other.waiting,
        )


class Tally:
    """A listener to events that counts. `working` says whether all pumps have begun, `finished` and `released` are what
    the pumps said at their end."""

    def __init__(self) -> None:
        self.finished = 0
        self.released = 0
        self.started: set[str] = set()
        self.waiting: int | None = None
        self._done = self._retried = self._dead = self._released = self._lost = 0
        self._in_flight: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        match event:
            case MessageStarted():
                self._in_flight.add((event.queue, event.id))
                return
            case MessageDone():
                self._done += 1
            case MessageRetried():
                self._retried += 1
            case MessageDead():
                self._dead += 1
            case MessageReleased():
                self._released += 1
            case LeaseLost():
                self._lost += 1
            case PumpStarted():
                self.started.add(event.queue)
                return
            case PumpStopped():
                self.finished += event.finished
                self.released += event.released
                return
            case _:
                return
        self._in_flight.discard((event.queue, event.id))

    def counts(self) -> Counts:
        """The counts at this moment."""
        return Counts(
            self._done, self._retried, self._dead, self._released, self._lost, len(self._in_flight), self.waiting
        )


class Worker:
    """Runs all actors of `app` in this process, over the transport that `settings` name."""

    def __init__(self, app: App, settings: Settings, queues: Sequence[str], *, look: bool = False) -> None:
        self.tally = Tally()
        self.health = Health()
        self.stop = Stop()
        self.forced_by: int | None = None
        self._app = app
        self._settings = settings
        self._queues = queues
        self._look = look
        self._transport: Transport | None = None

    def tell(self, number: int) -> None:
        """Act on a signal: the first lets what is in flight finish, the second does not."""
        if self.stop.requested:
            self.forced_by = number
            self.stop.now()
        else:
            self.stop.gently(self._settings.grace)

    async def run(self, ready: Callable[[str], None]) -> int:
        """Work until told to stop; return the exit code. `ready` is told the address of the endpoints, or nothing.

        A transport that is away is waited for; raise the `TransportError` or `ConfigError` that waiting does not mend.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self._app.events.subscribe(self.tally))
            stack.callback(self._app.events.subscribe(log_events))
            ready(await stack.enter_async_context(self._endpoints()) if self._settings.metrics else "")
            await self._until_stopped()
        return 0 if self.forced_by is None else 128 + self.forced_by

    @asynccontextmanager
    async def _endpoints(self) -> AsyncIterator[str]:
        from oncue.endpoints import ask_depths, serve  # a web server is worth its memory only where somebody asks
        from oncue.metrics import Metrics

        async def depths() -> Mapping[str, QueueDepth]:
            return {} if self._transport is None else await ask_depths(self._transport, self._queues)

        metrics = Metrics()
        forget = self._app.events.subscribe(metrics)
        try:
            async with serve(self._settings.metrics, self.health, metrics, depths) as bound:
                yield bound
        finally:
            forget()

    async def _until_stopped(self) -> None:
        tries = 0
        pulses = [self.health.pulse(queue) for queue in self._queues]
        while not self.stop.requested:
            try:
                transport = await abandoned_at(self.stop, open_transport(self._settings.url))
                if transport is None:
                    return
                async with _closing(transport), self._app.connected(transport):
                    self._transport = transport
                    for pulse in pulses:
                        pulse.end()
                    await self._work(transport)
            except ConnectionLostError as error:
                self._transport = None
                if not tries:
                    shown = {"url": redact_url(self._settings.url), "error": str(error)}
                    _log.warning("worker.waiting", extra={"fields": shown})
                for pulse in pulses:
                    pulse.lost(str(error))
                tries += 1
                await self.stop.wait_at_most(_BACK_OFF.backoff(tries) * random.uniform(0.5, 1.0))

    async def _work(self, transport: Transport) -> None:
        if not self._look:
            await self._app.work(self.stop, health=self.health)
            return
        looking = asyncio.create_task(self._keep_looking(transport))
        try:
            await self._app.work(self.stop, health=self.health)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _keep_looking(self, transport: Transport) -> None:
        """Keep `tally.waiting` up to date, without asking so often that it costs the work anything."""
        while True:
            began = time.perf_counter()
            try:
                depths = [await transport.depth(queue) for queue in self._queues]
            except (ConnectionLostError, QueueNotFoundError):
                self.tally.waiting = None
            else:
                counts = [count for depth in depths for count in (depth.ready, depth.delayed)]
                self.tally.waiting = None if None in counts else sum(count or 0 for count in counts)
            await asyncio.sleep(max(_LOOK, 20 * (time.perf_counter() - began)))


@asynccontextmanager
async def _closing(transport: Transport) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await transport.close()
