"""Runs the actors of an app: a pump for each, and those of the end actors when results are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from oncue.actors import Actor, ActorHandler
from oncue.core.retry import RetryPolicy
from oncue.ends import KEEP_TRYING, NOWHERE, Ends, KeepResult
from oncue.events import Events, HandlerAbandoned
from oncue.health import Health
from oncue.middleware import Handler, Middleware, compose
from oncue.outgoing import ERROR_END, HAPPY_END, Outgoing
from oncue.pump import Pump
from oncue.settle import OnDead, Settlement, no_sends
from oncue.stop import Stop
from oncue.transports.base import QueueSpec, Transport
from oncue.workloads.function import Caught, FunctionWorkload

if TYPE_CHECKING:
    from oncue.results import ResultStore

_END_CONCURRENCY = 32


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that running actors takes. `results` is where the ends of routes are kept, None when they are not.

    `caught` is told of every exception that a handler raised.
    """

    transport: Transport
    outgoing: Outgoing
    actors: Sequence[Actor[..., object]]
    middleware: Sequence[Middleware]
    events: Events
    health: Health
    results: ResultStore | None = None
    caught: Caught | None = None

    async def run(self, stop: Stop) -> None:
        """Work until `stop` says so. Cancelling it is `stop.now()`: messages are given back before it ends.

        Raise the `TransportError` of a queue that cannot be worked on; the other actors are then stopped at once.
        """
        async with AsyncExitStack() as stack:
            pumps = [self._pump_of_end(name) for name in (HAPPY_END, ERROR_END)] if self.results else []
            for actor in self.actors:
                workload = self._workload(actor)
                stack.push_async_callback(workload.close)
                pumps.append(self._pump_of(actor, workload))
            await _run_all([pump.run(stop) for pump in pumps])

    def _workload(self, actor: Actor[..., object]) -> FunctionWorkload:
        return FunctionWorkload(
            actor.signature,
            name=actor.name,
            timeout=actor.timeout,
            threads=actor.concurrency,
            abandoned=partial(self._abandoned, self.outgoing.queue(actor.name)),
            caught=self.caught,
        )

    def _abandoned(self, queue: str, count: int) -> None:
        self.events.emit(HandlerAbandoned(queue, count))

    def _pump_of(self, actor: Actor[..., object], workload: FunctionWorkload) -> Pump:
        queue = self.outgoing.queue
        handler = ActorHandler(
            actor.name,
            workload,
            self.outgoing,
            max_attempts=actor.retry.max_attempts,
            ends=Ends(queue(HAPPY_END), queue(ERROR_END)) if self.results else NOWHERE,
            longest=self.transport.features.max_body,
        )
        return self._pump(
            actor.spec(self.outgoing.prefix), actor.retry, handler, handler.on_dead, concurrency=actor.concurrency
        )

    def _pump_of_end(self, name: str) -> Pump:
        assert self.results is not None
        handler = KeepResult(self.results, "succeeded" if name == HAPPY_END else "failed")
        spec = QueueSpec(name=self.outgoing.queue(name))
        return self._pump(spec, KEEP_TRYING, handler, no_sends, concurrency=_END_CONCURRENCY)

    def _pump(
        self, spec: QueueSpec, retry: RetryPolicy, handler: Handler, on_dead: OnDead, *, concurrency: int
    ) -> Pump:
        return Pump(
            spec,
            Settlement(transport=self.transport, queue=spec.name, retry=retry, on_dead=on_dead, events=self.events),
            compose(handler, self.middleware),
            concurrency=concurrency,
            pulse=self.health.pulse(spec.name),
        )


async def _run_all(runs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all until they end; when one fails, cancel the others and raise what it raised."""
    async with single_failure(), asyncio.TaskGroup() as group:
        for run in runs:
            group.create_task(run)


@asynccontextmanager
async def single_failure() -> AsyncIterator[None]:
    """Around a task group whose first failure says it all: let that out as it is, with its own cause and context."""
    try:
        yield
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
        context = failure.__context__
        try:
            raise failure
        finally:
            failure.__context__ = context
