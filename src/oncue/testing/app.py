"""Runs an app in a test: on queues in memory, in virtual time, with its actors' own exceptions raised in the test."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from oncue.core.envelope import Envelope, decode_envelope
from oncue.core.errors import ActorFailedError
from oncue.core.failure import Failure
from oncue.core.times import format_duration
from oncue.dead import DeadLetter, dead_queue_name
from oncue.events import Event, MessageDead
from oncue.outgoing import ERROR_END, HAPPY_END
from oncue.stop import Stop
from oncue.testing.clock import run_in_virtual_time
from oncue.transports.base import QueueSpec
from oncue.transports.memory import MemoryStore, MemoryTransport
from oncue.work import single_failure

if TYPE_CHECKING:
    from oncue.app import App
    from oncue.context import Context, Named
    from oncue.results import Result, Status

T = TypeVar("T")

DAY = 86400.0


class AppTest:
    """An app at work in a test."""

    def __init__(self, app: App, transport: MemoryTransport, *, expect_failures: bool = False) -> None:
        self.app = app
        self.transport = transport
        self.results: Sequence[Result] = []
        """How each route ended so far, in that order."""
        self.failures: Sequence[BaseException] = []
        """Why each message that is in the dead letters got there, in that order: the handler's own exception if it
        raised one, else an `ActorFailedError`."""
        self._expect_failures = expect_failures
        self._told = 0
        self._prefix = app.settings.settings.prefix
        self._caught: dict[tuple[str, str], BaseException] = {}
        self._changed = asyncio.Event()

    async def idle(self, *, within: float = DAY) -> None:
        """Wait until no message of the app waits, is worked on, or is delayed; virtual time jumps over delays and retries.

        Raise what a handler raised for a message that ended in the dead letters, unless failures are expected, and
        `TimeoutError` when it takes longer than `within` virtual seconds.
        """
        try:
            async with asyncio.timeout(within):
                while await self._busy():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            busy = ", ".join(await self._busy())
            raise TimeoutError(f"still not idle after {format_duration(within)} of virtual time: {busy}") from None
        self.raise_failure()

    def dead(self, actor: str | Named) -> list[DeadLetter]:
        """The dead letters of an actor, oldest first."""
        name = dead_queue_name(self._queue(actor))
        return [DeadLetter.parse(name, message) for message in self._messages(name)]

    def waiting(self, actor: str | Named) -> list[Envelope]:
        """What is in an actor's queue and not finished, oldest first; above all for an actor outside of the app."""
        return [decode_envelope(message.body) for message in self._messages(self._queue(actor))]

    def sent(self, actor: str | Named) -> list[Any]:
        """The payloads of what is `waiting`."""
        return [msgspec.json.decode(envelope.payload) for envelope in self.waiting(actor)]

    def result(self, id: str) -> Any:
        """The payload at the end of the route of the message `id`. Raise `LookupError` when there is none."""
        for result in self.results:
            if result.id == id and result.status == "succeeded":
                return msgspec.json.decode(decode_envelope(result.envelope).payload)
        raise LookupError(f"message {id!r} has brought no result; there are results of {[r.id for r in self.results]}")

    def raise_failure(self) -> None:
        """Raise the first failure that was not raised yet, unless failures are expected."""
        if self._expect_failures or len(self.failures) <= self._told:
            return
        new = self.failures[self._told :]
        self._told = len(self.failures)
        if len(new) > 1:
            new[0].add_note(f"and {len(new) - 1} more messages failed")
        raise new[0]

    def hear(self, event: Event) -> None:
        """For the app's events: notice that something has changed, and what was given up."""
        self._changed.set()
        if isinstance(event, MessageDead):
            actor = event.queue.removeprefix(self._prefix)
            failure = self._failure(actor, event.id)
            failure.add_note(f"actor {actor!r} gave up message {event.id!r} at attempt {event.attempt}")
            self.failures = [*self.failures, failure]

    def catch(self, context: Context, error: BaseException) -> None:
        """For the app's workloads: keep what a handler raised last for a message."""
        self._caught[context.actor, context.id] = error

    def _failure(self, actor: str, id: str) -> BaseException:
        letter = next(letter for letter in reversed(self.dead(actor)) if letter.id == id)
        caught = self._caught.pop((actor, id), None)
        if caught is not None and type(caught).__name__ == letter.type:
            return caught
        return ActorFailedError(actor, Failure(letter.reason, letter.type, letter.message, letter.traceback))

    def _queue(self, actor: str | Named) -> str:
        return self._prefix + (actor if isinstance(actor, str) else actor.name)

    def _messages(self, queue: str) -> Sequence[Any]:
        found = self.transport.queue(queue)
        found.catch_up()
        return found.oldest(sys.maxsize)

    async def _busy(self) -> list[str]:
        """What keeps the app from being idle, one text for each queue."""
        busy = []
        for actor in (*self.app.actors, HAPPY_END, ERROR_END):
            queue = self._prefix + actor
            depth = await self.transport.depth(queue) if queue in self.transport.store.queues else None
            if depth is not None and (depth.ready or depth.leased or depth.delayed):
                busy.append(f"{actor} has {depth.ready} ready, {depth.leased} leased, {depth.delayed} delayed")
        return busy


Scenario = Callable[[AppTest], Awaitable[T]]


def run_app(
    app: App,
    scenario: Scenario[T],
    *,
    expect_failures: bool = False,
    outside: Sequence[str] = (),
    finish: bool = True,
) -> T:
    """Run `scenario` in virtual time, with `app` connected to fresh queues in memory and its actors at work.

    `outside` names actors of other programs whose queues are to be there. After the scenario the app becomes idle, unless
    `finish` is false. A message that ends in the dead letters fails the test with its handler's own exception, unless
    `expect_failures`. Return what the scenario returns. Blocks, as `asyncio.run` does; raises what the scenario raises.
    """
    return run_in_virtual_time(lambda: _run(app, scenario, expect_failures, outside, finish))


def app_test(
    app: App, *, expect_failures: bool = False, outside: Sequence[str] = (), finish: bool = True
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """`run_app` as a decorator: makes of `async def test_x(test, …)` a test without `async` that any runner can run.

    The first parameter gets the `AppTest`; the others stay, for pytest's fixtures.
    """

    def decorate(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        signature = inspect.signature(function)
        name, *_ = [name for name in signature.parameters if name != "self"]

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            run_app(
                app,
                lambda test: function(*args, **{name: test}, **kwargs),
                expect_failures=expect_failures,
                outside=outside,
                finish=finish,
            )

        del run.__wrapped__  # its signature would ask for the AppTest as a fixture
        others = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run

    return decorate


async def _run(app: App, scenario: Scenario[T], expect_failures: bool, outside: Sequence[str], finish: bool) -> T:
    transport = MemoryTransport(MemoryStore())
    test = AppTest(app, transport, expect_failures=expect_failures)
    for name in outside:
        await transport.declare(QueueSpec(name=app.settings.settings.prefix + name))
    forget = app.events.subscribe(test.hear)
    stop = Stop()
    try:
        async with app.connected(transport), single_failure(), asyncio.TaskGroup() as group:
            group.create_task(app.work_with(stop, results=_Results(test), caught=test.catch))
            returned = await scenario(test)
            if finish:
                await test.idle()
            test.raise_failure()
            stop.now()
        return returned
    finally:
        forget()
        await transport.close()


class _Results:
    """A `ResultStore` in the test's own list."""

    def __init__(self, test: AppTest) -> None:
        self._test = test

    async def put(self, result: Result) -> None:
        self._test.results = [*self._test.results, result]

    async def get(self, id: str) -> Result | None:
        return next((result for result in self._test.results if result.id == id), None)

    async def list(
        self, *, status: Status | None = None, limit: int = 100, before: datetime | None = None
    ) -> Sequence[Result]:
        found = [
            result
            for result in reversed(self._test.results)
            if status in (None, result.status) and (before is None or result.finished_at < before)
        ]
        return found[:limit]

    async def purge(self) -> int:
        return 0

    async def close(self) -> None:
        return None
