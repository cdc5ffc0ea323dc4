"""The built-in end actors: they keep results where there is a store, and answer whoever waits for the end of a route."""

from __future__ import annotations

from collections.abc import Sequence

from oncue.ends import KEEP_TRYING, KeepResult
from oncue.events import Events
from oncue.health import Health
from oncue.middleware import Middleware, compose
from oncue.outgoing import ERROR_END
from oncue.pump import Pump, Stop
from oncue.results import ResultStore, Status
from oncue.settle import Settlement
from oncue.transports.base import QueueSpec, Transport

_CONCURRENCY = 32


class EndActor:
    """Works as the end actor `name`; what comes to it has failed when `status` says so, by default at `error-end` alone.

    While the store is away messages wait in the queue. What is no envelope goes to the dead letters and nowhere else.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        prefix: str,
        events: Events,
        health: Health,
        store: ResultStore | None = None,
        status: Status | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._spec = QueueSpec(name=prefix + name)
        self._transport = transport
        self._events = events
        self._health = health
        kept: Status = status or ("failed" if name == ERROR_END else "succeeded")
        self._handler = compose(KeepResult(store, kept), middleware)

    async def run(self, stop: Stop) -> None:
        """Work until told to stop. Raises and is cancelled as `Pump.run`; the store stays open."""
        spec = self._spec
        settlement = Settlement(transport=self._transport, queue=spec.name, retry=KEEP_TRYING, events=self._events)
        pulse = self._health.pulse(spec.name)
        await Pump(spec, settlement, self._handler, concurrency=_CONCURRENCY, pulse=pulse).run(stop)
