"""Everything that `oncue up` runs: a group of replicas for each actor and the built-in ends, over one transport.

One process holds the pumps of all; what is shown to people is done by whoever calls this.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from oncue.core.errors import ConnectionLostError, QueueMismatchError, QueueNotFoundError, TransportClosedError
from oncue.core.redact import redact_url
from oncue.core.retry import RetryPolicy
from oncue.core.settings import Settings
from oncue.dead import dead_queue_name
from oncue.events import Events
from oncue.health import Health
from oncue.local.gateways import Gateways
from oncue.local.group import Group
from oncue.local.lines import Prefixed, Records
from oncue.local.plan import Plan, Planned
from oncue.local.replica import Replica, SidecarProcess
from oncue.local.settings import actor_settings, gateway_url, sidecar_environment
from oncue.local.state import ActorReport
from oncue.local.tally import QueueTally
from oncue.local.watch import Modules, Watched
from oncue.outgoing import ERROR_END, HAPPY_END
from oncue.results import Status, open_results
from oncue.sidecar.actor import SidecarActor
from oncue.sidecar.ends import EndActor
from oncue.stop import Stop, abandoned_at
from oncue.transports import open_transport
from oncue.transports.base import Depth, QueueSpec, Transport
from oncue.work import single_failure

_log = logging.getLogger("oncue.local")

_LOOK = 0.2
"""Seconds between looks at the queues of actors that sleep; each may take a fiftieth of the time until the next."""
_WATCH = 0.5
"""Seconds between looks at files."""
_ENDS_GRACE = 5.0
"""Seconds that the end actors get to finish, after all others."""
_LAST_WORDS = 3.0
"""Seconds that gateways get at the end for what they were not told yet."""
_ENDS: Mapping[str, Status] = {HAPPY_END: "succeeded", ERROR_END: "failed"}
_BACK_OFF = RetryPolicy(max_attempts=1, base=0.2, factor=2.0, cap=15.0)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How actors are run.

    isolate: a sidecar process for each replica, instead of pumps in this process.
    watch: reads the manifests again; None when nothing is watched. `files` are those that it reads.
    """

    isolate: bool = False
    watch: Callable[[], Planned] | None = None
    files: Callable[[], Sequence[Path]] = list


class Local:
    """Runs actors until told to stop. `sockets` is a folder of its own, with a short path."""

    def __init__(
        self,
        settings: Settings,
        plans: Sequence[Plan],
        sockets: Path,
        options: Options,
        lines: Prefixed | Records,
    ) -> None:
        self.events = Events()
        self.health = Health()
        self.stop = Stop()
        self._settings = settings
        self._plans = {plan.name: plan for plan in plans}
        self._sockets = sockets
        self._options = options
        self._lines = lines
        self._tally = QueueTally()
        self._gateways = Gateways()
        self._groups: dict[str, Group] = {}
        self._gone: dict[str, Group] = {}
        self._numbers = itertools.count(1)
        self._transport: Transport | None = None
        self._away = ""
        self._signals = 0
        self._forced: int | None = None

    def tell(self, number: int) -> None:
        """Act on a signal: the first lets what is in work finish, the second does not."""
        self._signals += 1
        self.stop.gently(0.0)  # each group has a grace period of its own
        if self._signals > 1:
            self._forced = number
            for group in [*self._groups.values(), *self._gone.values()]:
                group.now()

    @property
    def in_work(self) -> int:
        """How many messages were in work when this was last looked at."""
        return sum(group.depth.leased or 0 for group in self._groups.values())

    async def run(self, ready: Callable[[], None]) -> int:
        """Work until told to stop; the exit code. `ready` is called once, when everything was started.

        A transport that is away is waited for; raise the `TransportError` or `ConfigError` that waiting does not mend.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self.events.subscribe(self._tally))
            transport = await self._connect()
            if transport is not None:
                self._transport = transport
                stack.push_async_callback(transport.close)
                stack.push_async_callback(self._end_reports)
                await self._serve(stack)
                async with single_failure():
                    await self._run(transport, ready)
        return 0 if self._forced is None else 128 + self._forced

    async def report(self) -> Sequence[ActorReport]:
        """How all actors are at this moment, those at the ends of routes last."""
        if self._transport is None:
            return self._waiting()
        for group in list(self._groups.values()):
            group.depth = await self._depth(group.queue) or group.depth
        reports = [
            group.report(None if self._options.isolate else self._tally.of(group.queue))
            for group in self._groups.values()
        ]
        reports += [await self._report_of_end(name) for name in (HAPPY_END, ERROR_END) if name not in self._plans]
        return [await self._with_dead(report) for report in reports]

    # Beginning and ending

    async def _connect(self) -> Transport | None:
        tries = 0
        while not self.stop.requested:
            try:
                return await abandoned_at(self.stop, self._opened())
            except ConnectionLostError as error:
                if not tries:
                    shown = {"url": redact_url(self._settings.url), "error": str(error)}
                    _log.warning("worker.waiting", extra={"fields": shown})
                tries += 1
                self._away = str(error)
                await self.stop.wait_at_most(_BACK_OFF.backoff(tries) * random.uniform(0.5, 1.0))
        return None

    async def _opened(self) -> Transport:
        transport = await open_transport(self._settings.url)
        try:
            await self._declare(transport, self._plans)
        except BaseException:
            await transport.close()
            raise
        return transport

    async def _serve(self, stack: AsyncExitStack) -> None:
        if not self._settings.metrics:
            return
        from oncue.endpoints import serve  # a web server is worth its memory only where somebody asks
        from oncue.metrics import Metrics

        metrics = Metrics()
        stack.callback(self.events.subscribe(metrics))
        address = await stack.enter_async_context(serve(self._settings.metrics, self.health, metrics))
        _log.warning("metrics.served", extra={"fields": {"address": address}})

    async def _end_reports(self) -> None:
        await self._gateways.close(_LAST_WORDS if self._forced is None else 0.0)

    async def _declare(self, transport: Transport, names: Mapping[str, Plan]) -> None:
        for name in (*names, HAPPY_END, ERROR_END):
            queue = self._settings.prefix + name
            await transport.declare(QueueSpec(name=queue))
            try:
                await transport.declare(QueueSpec(name=dead_queue_name(queue)))
            except QueueMismatchError:
                _log.debug("the dead queue of %s has settings of its own, which is all right", queue)

    async def _run(self, transport: Transport, ready: Callable[[], None]) -> None:
        ends = Stop()
        async with TaskGroup() as tasks, self._ends(transport, ends, tasks):
            for plan in self._plans.values():
                self._add(plan, transport, tasks)
            beside = [tasks.create_task(self._keep_looking())]
            if self._options.watch is not None:
                modules = Modules()
                watched = Watched(itertools.chain(*self._files(modules).values()))  # as it was when all was started
                beside.append(tasks.create_task(self._keep_watching(transport, tasks, modules, watched)))
            ready()
            try:
                await self.stop.wait()
            finally:
                for task in beside:
                    task.cancel()
            await asyncio.gather(*(group.end() for group in self._all()))

    def _all(self) -> Sequence[Group]:
        return [*self._groups.values(), *self._gone.values()]

    @asynccontextmanager
    async def _ends(self, transport: Transport, stop: Stop, tasks: TaskGroup) -> AsyncIterator[None]:
        """The built-in end actors, from before all others to after them."""
        settings = self._settings
        results = open_results(settings.results, settings.result_retention) if settings.results else None
        reports = self._know_gateways()
        running = []
        for name, status in _ENDS.items():
            if name not in self._plans:
                end = EndActor(
                    name,
                    transport,
                    prefix=settings.prefix,
                    events=self.events,
                    health=self.health,
                    store=results,
                    middleware=[self._gateways.ends(status).middleware] if reports else (),
                )
                running.append(tasks.create_task(end.run(stop)))
        try:
            yield
        finally:
            stop.gently(_ENDS_GRACE)
            await asyncio.gather(*running, return_exceptions=True)
            if results is not None:
                await results.close()

    def _add(self, plan: Plan, transport: Transport, tasks: TaskGroup) -> None:
        group = Group(
            plan,
            self._settings.prefix + plan.name,
            lambda plan, number: self._replica(transport, plan, number),
            tasks.create_task,
        )
        self._groups[plan.name] = group
        group.begin()

    def _replica(self, transport: Transport, plan: Plan, number: int) -> Replica:
        place = self._sockets / str(next(self._numbers))
        lines = self._lines.of(plan.name, number)
        if self._options.isolate:
            environment = sidecar_environment(plan, place, self._settings)
            said = self._lines.of_sidecar(plan.name, number)
            sidecar = SidecarProcess(f"{plan.name}/{number} sidecar", environment, said, plan.grace)
            return Replica(plan, number, place, sidecar.run, lines, early=True)
        settings = actor_settings(plan, place, self._settings)
        observer = self._gateways.observer(gateway_url(plan, place, self._settings), settings)
        actor = SidecarActor(settings, transport, events=self.events, health=self.health, observer=observer)
        return Replica(plan, number, place, actor.run, lines)

    def _know_gateways(self) -> bool:
        """Know all gateways that the manifests name; whether there are any, or may be some later."""
        urls = {gateway_url(plan, self._sockets, self._settings) for plan in self._plans.values()} - {""}
        for url in urls:
            self._gateways.at(url)
        return bool(urls) or self._options.watch is not None

    # Scaling

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            due = [group for group in self._groups.values() if group.due(began)]
            depths = await asyncio.gather(*(self._depth(group.queue) for group in due))
            for group, depth in zip(due, depths, strict=True):
                if depth is not None:
                    group.scale(loop.time(), depth)
            await asyncio.sleep(max(_LOOK, 50 * (loop.time() - began)) if due else _LOOK)

    async def _depth(self, queue: str) -> Depth | None:
        """The depth of a queue; None when nobody can tell now. A queue that was deleted is made again."""
        if self._transport is None:
            return None
        try:
            return await self._transport.depth(queue)
        except ConnectionLostError as error:
            _log.debug("the depth of queue %s is not known now: %s", queue, error)
        except QueueNotFoundError:
            await self._transport.declare(QueueSpec(name=queue))
        except TransportClosedError:
            _log.debug("the depth of queue %s is not asked for any more", queue)
        return None

    # Watching

    async def _keep_watching(self, transport: Transport, tasks: TaskGroup, modules: Modules, watched: Watched) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            files = await asyncio.to_thread(self._files, modules)
            changed = await asyncio.to_thread(watched.changed, set(itertools.chain(*files.values())))
            if not changed:
                continue
            if changed & files.pop(""):
                await self._read_again(transport, tasks)
            for name, group in self._groups.items():
                touched = changed & files.get(name, set())
                if touched:
                    shown = {"actor": name, "files": ", ".join(sorted(path.name for path in touched))}
                    _log.warning("code.changed", extra={"fields": shown})
                    group.renew(group.plan)

    def _files(self, modules: Modules) -> dict[str, set[Path]]:
        """The files of each actor, and under the empty name those of the manifests."""
        found = {name: modules.files(plan.folder, plan.handler) for name, plan in self._plans.items()}
        return found | {"": set(self._options.files())}

    async def _read_again(self, transport: Transport, tasks: TaskGroup) -> None:
        assert self._options.watch is not None
        planned = await asyncio.to_thread(self._options.watch)
        for fault in planned.faults:
            _log.error("manifest.wrong", extra={"fields": {"fault": fault}})
        if planned.faults:
            return
        plans = {plan.name: plan for plan in planned.plans}
        await self._declare(transport, plans)
        before, self._plans = self._plans, plans
        self._know_gateways()
        for name in before.keys() - plans.keys():
            _log.warning("actor.removed", extra={"fields": {"actor": name}})
            group = self._gone[name] = self._groups.pop(name)
            tasks.create_task(group.end())
        for name, plan in plans.items():
            if name not in before and plan.is_end:
                _log.warning(
                    "actor.later", extra={"fields": {"actor": name, "why": "ends are replaced at the start only"}}
                )
            elif name not in before:
                _log.warning("actor.added", extra={"fields": {"actor": name}})
                self._add(plan, transport, tasks)
            elif not plan.same(before[name]):
                _log.warning("actor.changed", extra={"fields": {"actor": name}})
                self._groups[name].renew(plan)

    # Reporting

    def _waiting(self) -> Sequence[ActorReport]:
        """How they are while the transport is away."""
        ends = [name for name in _ENDS if name not in self._plans]
        return [
            ActorReport(name=name, state="starting", replicas=0, wanted=0, built_in=name in ends, error=self._away)
            for name in (*self._plans, *ends)
        ]

    async def _report_of_end(self, name: str) -> ActorReport:
        queue = self._settings.prefix + name
        depth = await self._depth(queue) or Depth(None, None, None)
        count = self._tally.of(queue)
        return ActorReport(
            name=name,
            state="running",
            replicas=1,
            wanted=1,
            built_in=True,
            ready=depth.ready,
            leased=depth.leased,
            delayed=depth.delayed,
            done=count.done,
            errors=count.errors,
            error=count.error,
        )

    async def _with_dead(self, report: ActorReport) -> ActorReport:
        depth = await self._depth(dead_queue_name(self._settings.prefix + report.name))
        return report if depth is None else msgspec.structs.replace(report, dead=depth.ready)
