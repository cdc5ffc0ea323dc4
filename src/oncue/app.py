"""The library's face: an app holds actors, knows where their queues are, sends to them and runs them."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

import msgspec

from oncue.actors import Actor
from oncue.context import Named
from oncue.core.errors import (
    ConfigError,
    DuplicateActorError,
    InvalidValueError,
    PartialSendError,
    QueueNotFoundError,
    UnknownActorError,
)
from oncue.core.kinds import PREFIX, URL, Kind
from oncue.core.message import Send
from oncue.core.redact import redact_url
from oncue.core.retry import RetryPolicy
from oncue.core.settings import Loaded, did_you_mean, load_settings
from oncue.dead import dead_queue_name, is_dead_queue
from oncue.events import Events
from oncue.health import Health
from oncue.middleware import Middleware
from oncue.outgoing import Outgoing
from oncue.stop import Stop
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Transport
from oncue.work import Work, single_failure

if TYPE_CHECKING:
    from oncue.blocking import BlockingApp
    from oncue.calls import Replies
    from oncue.results import ResultStore
    from oncue.workloads.function import Caught

P = ParamSpec("P")
R = TypeVar("R")


class App:
    """Actors, and where their queues are.

    url: where the queues are; without it the setting `url`. prefix: what the names of queues begin with; without it the
    setting `prefix`. middleware: wraps every actor's handler, the first outermost. Making an app opens and reads nothing.
    """

    def __init__(
        self, url: str | None = None, *, prefix: str | None = None, middleware: Iterable[Middleware] = ()
    ) -> None:
        given = {"url": _given("url", url, URL), "prefix": _given("prefix", prefix, PREFIX)}
        self._given = {name: value for name, value in given.items() if value is not None}
        self._settings: Loaded | None = None
        self._actors: dict[str, Actor[..., Any]] = {}
        self._middleware = tuple(middleware)
        self._connection: _Connection | None = None
        self._entered: list[Any] = []
        self.events = Events()

    @property
    def actors(self) -> Mapping[str, Actor[..., Any]]:
        """The app's actors by name."""
        return MappingProxyType(self._actors)

    @property
    def settings(self) -> Loaded:
        """The settings in force, read when they are first asked for; `url` and `prefix` of the app go before all others.

        May be set before the app is connected. Raise `SettingsError` with every fault of every source.
        """
        if self._settings is None:
            loaded = load_settings()
            sources = {**loaded.sources, **{name: f"App({name}=…)" for name in self._given}}
            settings = msgspec.structs.replace(loaded.settings, **self._given)
            self._settings = Loaded(settings, sources, loaded.config)
        return self._settings

    @settings.setter
    def settings(self, loaded: Loaded) -> None:
        self._settings = loaded

    # Making actors

    @overload
    def actor(self, function: Callable[P, R], /) -> Actor[P, R]: ...
    @overload
    def actor(
        self,
        name: str | None = None,
        *,
        timeout: float | None = None,
        concurrency: int | None = None,
        retry: RetryPolicy | None = None,
        lease: float = 60.0,
        fifo: bool = False,
    ) -> Callable[[Callable[P, R]], Actor[P, R]]: ...

    def actor(self, name: Any = None, **options: Any) -> Any:
        """Make an actor of a function; used as a decorator, with or without parentheses.

        name: of the actor and, after the prefix, of its queue; the function's name by default. timeout: seconds for one
        attempt, None for no end. concurrency: how many attempts run at the same time in one process (by default 100 for
        an async function, 16 for one that needs threads). retry: how often and how soon again. lease: seconds after
        which the message of a worker that died is handed out again. fifo: whether messages of one key stay in order.

        Raise `ConfigError` for a function that cannot be called with a payload, `InvalidValueError` for a bad option, and
        `DuplicateActorError` for a second actor of one name.
        """
        local_names = sys._getframe(1).f_locals  # noqa: SLF001  # annotations may name what a function around them defines
        if name is None or isinstance(name, str):
            return lambda function: self._add(function, local_names, name=name, **options)
        return self._add(name, local_names, **options)

    def _add(self, function: Any, local_names: Mapping[str, Any], **options: Any) -> Actor[..., Any]:
        actor = Actor(self, function, local_names=local_names, **options)
        other = self._actors.get(actor.name)
        if other is not None:
            raise DuplicateActorError(f"two actors are called {actor.name!r}: {other.place} and {actor.place}")
        self._actors[actor.name] = actor
        return actor

    # Connecting

    async def __aenter__(self) -> Self:
        """Connect to where the settings say and declare the queues of the actors. May be entered again after its end."""
        block = self._opened()
        await block.__aenter__()
        self._entered.append(block)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.pop().__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[App]:
        self._check_not_open()
        transport = await open_transport(self.settings.settings.url)
        try:
            async with self.connected(transport):
                yield self
        finally:
            await transport.close()

    @asynccontextmanager
    async def connected(self, transport: Transport) -> AsyncIterator[App]:
        """Use an open transport, which stays open, for the length of the block; declare the queues of the actors."""
        self._check_not_open()
        self._connection = connection = _Connection(transport, Outgoing(self.settings.settings.prefix))
        try:
            await connection.declare(self._actors.values())
            yield self
        finally:
            try:
                await connection.close()
            finally:
                self._connection = None

    def _check_not_open(self) -> None:
        if self._connection is not None and self._connection.alive:
            raise ConfigError("the app is connected already: it is used from one block and one event loop at a time")

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is None:
            raise ConfigError("the app is not connected: use it inside of `async with app:`")
        if asyncio.get_running_loop() is not connection.loop:
            raise ConfigError(
                "the app is connected in another event loop: connect it in the one that uses it (`async with app:`)"
            )
        return connection

    # Sending

    async def send(
        self,
        actor: str | Named,
        payload: Any = None,
        *,
        delay: float = 0.0,
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Send `payload` to `actor`; return the message's id once it is stored.

        It is handed out no sooner than `delay` seconds from now, and what comes out goes on to the actors of `route`.
        Messages of one `key` stay in order in a fifo queue. `headers` go along the whole route. Raise
        `InvalidValueError` for what cannot be sent, `UnknownActorError` when the actor has no queue, and the
        `TransportError` that kept it from being stored.
        """
        connection = self._connected()
        send = connection.outgoing.compose(actor, payload, delay=delay, id=id, key=key, route=route, headers=headers)
        await self._deliver(connection, [send])
        return send.message.id

    async def send_many(
        self,
        actor: str | Named,
        payloads: Iterable[Any],
        *,
        delay: float = 0.0,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Send each of `payloads` as `send` does, all in one round trip; return the ids in the same order.

        When one of them cannot be sent, none is. Raise `PartialSendError` where a transport stored some of them only.
        """
        connection = self._connected()
        sends = connection.outgoing.compose_many(actor, payloads, delay=delay, route=route, headers=headers)
        if sends:
            await self._deliver(connection, sends)
        return [send.message.id for send in sends]

    async def call(
        self,
        actor: str | Named,
        payload: Any = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # ends with an error of ours, which says what was waited for
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> Any:
        """Send as `send` does and wait for what comes out at the end of the route.

        After a fan-out that is a list with the results in the order of the tree. A branch that ended early counts as
        None. Raise `ActorFailedError` as soon as one branch is given up, and `CallTimeoutError` when the result is not
        there within `timeout` seconds; the work itself goes on. Safe to cancel.
        """
        connection = self._connected()
        send = connection.outgoing.compose(actor, payload, id=id, key=key, route=route, headers=headers)
        replies = await connection.replies()
        name = actor if isinstance(actor, str) else actor.name

        async def deliver(marked: Send) -> None:
            await self._deliver(connection, [marked])

        return await replies.call(send, deliver, name, timeout)

    async def _deliver(self, connection: _Connection, sends: Sequence[Send]) -> None:
        """Store messages that all go to one queue."""
        queue = sends[0].queue
        name = queue.removeprefix(connection.outgoing.prefix)
        known = self._actors.get(name)
        if known is not None and name not in connection.declared:
            await connection.declare([known])
        try:
            await connection.transport.send(*sends)
        except QueueNotFoundError as error:
            raise await self._unknown(connection, name) from error
        except PartialSendError as error:
            if len(error.failed) == len(sends) and all(
                isinstance(each, QueueNotFoundError) for each in error.failed.values()
            ):
                raise await self._unknown(connection, name) from error
            raise

    async def _unknown(self, connection: _Connection, name: str) -> UnknownActorError:
        prefix = connection.outgoing.prefix
        names = {spec.name.removeprefix(prefix) for spec in await connection.transport.queues()} | set(self._actors)
        close = did_you_mean(name, [each for each in names if not is_dead_queue(each)])
        return UnknownActorError(f"there is no actor {name!r}: no queue {prefix + name!r} exists{close}")

    # Working

    async def work(self, stop: Stop, *, health: Health | None = None) -> None:
        """Run all actors until `stop` says so; the app has to be connected.

        Raise the `TransportError` of a queue that cannot be worked on. Cancelling it is `stop.now()`.
        """
        settings = self.settings.settings
        if not settings.results:
            await self.work_with(stop, health=health)
            return
        from oncue.results import open_results

        store = open_results(settings.results, settings.result_retention)
        try:
            await self.work_with(stop, health=health, results=store)
        finally:
            await store.close()

    async def work_with(
        self,
        stop: Stop,
        *,
        health: Health | None = None,
        results: ResultStore | None = None,
        caught: Caught | None = None,
    ) -> None:
        """As `work`, with `results` as the store instead of the one that the settings name, None for none.

        `caught` is told of every exception that a handler raised, as the object it is.
        """
        connection = self._connected()
        await Work(
            transport=connection.transport,
            outgoing=connection.outgoing,
            actors=tuple(self._actors.values()),
            middleware=self._middleware,
            events=self.events,
            health=health or Health(),
            results=results,
            caught=caught,
        ).run(stop)

    @asynccontextmanager
    async def working(self, *, stop: Stop | None = None) -> AsyncIterator[App]:
        """Run all actors in the background of the block, connected for its length if the app is not connected yet.

        At the end of the block what is in flight gets the setting `grace` to finish; after an exception it is given back
        at once. Raise what `work` raises, and end the block then.
        """
        if self._connection is None or not self._connection.alive:
            async with self, self.working(stop=stop):
                yield self
            return
        stop = stop or Stop()
        async with single_failure(), asyncio.TaskGroup() as group:
            group.create_task(self.work(stop))
            yield self
            stop.gently(self.settings.settings.grace)

    def blocking(self) -> BlockingApp:
        """The same verbs for programs without asyncio: `with app.blocking() as jobs: jobs.send("greet", "Ada")`."""
        from oncue.blocking import BlockingApp

        return BlockingApp(self)


class _Connection:
    """An app's use of one transport, in one event loop."""

    def __init__(self, transport: Transport, outgoing: Outgoing) -> None:
        self.transport = transport
        self.outgoing = outgoing
        self.loop: AbstractEventLoop = asyncio.get_running_loop()
        self.declared: set[str] = set()
        self._process = os.getpid()
        self._replies: Replies | None = None

    @property
    def alive(self) -> bool:
        """Whether it can still be used: not if its event loop is closed, or was left behind by a fork."""
        return not self.loop.is_closed() and self._process == os.getpid()

    async def declare(self, actors: Iterable[Actor[..., Any]]) -> None:
        """Make the queues of `actors` and those of their dead letters. Raise `QueueMismatchError` for one that differs."""
        for actor in actors:
            spec = actor.spec(self.outgoing.prefix)
            await self.transport.declare(spec)
            await self.transport.declare(QueueSpec(name=dead_queue_name(spec.name)))
            self.declared.add(actor.name)

    async def replies(self) -> Replies:
        """Where the results of calls arrive; made at the first call."""
        if self._replies is None:
            from oncue.calls import Replies  # most programs only send

            self._replies = Replies(self.transport)
        return self._replies

    async def close(self) -> None:
        if self._replies is not None:
            await self._replies.close()


def _given(name: str, value: object, kind: Kind) -> Any:
    if value is None:
        return None
    try:
        return kind.read(value)
    except ValueError:
        shown = redact_url(value) if isinstance(value, str) else value
        raise InvalidValueError(f"App {name} is {shown!r}, expected {kind.expected}") from None
