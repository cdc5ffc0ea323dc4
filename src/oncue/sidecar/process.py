"""The sidecar as a process: connects however long that takes, waits for its runtime, works, and answers for its health.

Only wiring; the command line calls it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from asyncio import Task
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from oncue.core.errors import ConfigError, ConnectionLostError, LoadError, TransportError
from oncue.core.redact import redact_url
from oncue.core.retry import RetryPolicy
from oncue.core.settings import SidecarSettings
from oncue.core.times import format_duration
from oncue.dead import dead_queue_name
from oncue.events import Events, log_events
from oncue.health import Health
from oncue.outgoing import check_actor_name
from oncue.results import open_results
from oncue.sidecar.actor import ActorSettings, SidecarActor
from oncue.sidecar.ends import EndActor
from oncue.sidecar.link import check_path, why_not_loaded
from oncue.sidecar.observer import NOBODY, Observer, Observers
from oncue.stop import Stop, abandoned_at, unless
from oncue.transports import open_transport
from oncue.transports.base import Transport

if TYPE_CHECKING:
    from oncue.metrics import QueueDepth
    from oncue.sidecar.gateway import Gateway
    from oncue.sidecar.http import Page
    from oncue.sidecar.metrics import AsyaMetrics

_log = logging.getLogger("oncue.sidecar")

_BACK_OFF = RetryPolicy(max_attempts=1, base=0.1, factor=2.0, cap=15.0)
_LOOK = 0.05
_LAST_WORDS = 3.0
"""Seconds that a gateway gets at the end for what it was not told yet, within the grace period or but a moment after it."""
_LEAST = 0.5
_DEPTHS_WITHIN = 3.0
_TRANSPORTS = {"amqp": "rabbitmq", "amqps": "rabbitmq", "rediss": "redis"}
"""What Asya calls the transport of a scheme, where that is another word."""


def actor_settings(settings: SidecarSettings) -> ActorSettings:
    """What the settings say about the replica. Raise `ConfigError` for what no actor can be."""
    socket = Path(settings.socket_dir) / settings.socket_name
    wrong = "" if settings.built_in else check_path(socket)
    if wrong:
        raise ConfigError(wrong)
    for name in (settings.actor_name, settings.happy_end, settings.error_end):
        check_actor_name(name, settings.prefix)
    if settings.built_in and settings.actor_name not in {settings.happy_end, settings.error_end}:
        raise ConfigError(
            f"actor {settings.actor_name!r} cannot be built in: only {settings.happy_end!r} and {settings.error_end!r} are"
        )
    return ActorSettings(
        name=settings.actor_name,
        socket=socket,
        prefix=settings.prefix,
        timeout=settings.runtime_timeout,
        attempts=settings.attempts,
        retry=RetryPolicy(max_attempts=settings.crash_attempts, base=settings.backoff, cap=settings.backoff_cap),
        happy_end=settings.happy_end,
        error_end=settings.error_end,
        is_end=settings.end_actor or settings.built_in,
        lease=settings.lease,
    )


class Sidecar:
    """One sidecar. Raise `ConfigError` for settings that cannot be worked with."""

    def __init__(self, settings: SidecarSettings) -> None:
        self.events = Events()
        self.health = Health()
        self.stop = Stop()
        self.forced_by: int | None = None
        self._deadline = 0.0
        self._settings = settings
        self._actor = actor_settings(settings)
        self._transport: Transport | None = None
        self._asya: AsyaMetrics | None = None
        self._gateway: Gateway | None = None

    def tell(self, number: int) -> None:
        """Act on a signal: the first lets what is in work finish, the second does not."""
        if self.stop.requested:
            self.forced_by = number
            self.stop.now()
        else:
            shown = {"grace": format_duration(self._settings.grace)}
            _log.info("sidecar.stopping", extra={"fields": shown})
            self._deadline = time.monotonic() + self._settings.grace
            self.stop.gently(self._settings.grace)

    async def run(self) -> int:
        """Work until told to stop; return the exit code.

        A transport that is away is waited for, and so is the runtime, at the start for the time that the settings say. Raise
        `LoadError` when the runtime cannot load its handler, and the `TransportError` or `ConfigError` that waiting does
        not mend.
        """
        began = time.time()
        async with AsyncExitStack() as stack:
            stack.callback(self.events.subscribe(log_events))
            address = await stack.enter_async_context(self._endpoints())
            transport = await self._connect()
            if transport is not None:
                self._transport = transport
                stack.push_async_callback(transport.close)
                observer = await self._observers(stack)
                self._say_started(address)
                await self._work(transport, observer, began)
        return 0 if self.forced_by is None else 128 + self.forced_by

    # Working

    async def _work(self, transport: Transport, observer: Observer, began: float) -> None:
        settings = self._settings
        if self._asya is not None:
            from oncue.sidecar.receiving import Timed

            transport = Timed(transport, self._asya.waited)
        status = self._actor.status
        if settings.built_in:
            store = open_results(settings.results, settings.result_retention) if settings.results else None
            try:
                await EndActor(
                    settings.actor_name,
                    transport,
                    prefix=settings.prefix,
                    events=self.events,
                    health=self.health,
                    store=store,
                    status=status,
                    middleware=[observer.middleware],
                ).run(self.stop)
            finally:
                if store is not None:
                    await store.close()
            return
        actor = SidecarActor(self._actor, transport, events=self.events, health=self.health, observer=observer)
        working = asyncio.create_task(actor.run(self.stop))
        try:
            await unless(self.stop, self._see_it_loaded(actor, working, began))
        except BaseException:
            self.stop.now()
            await asyncio.wait([working])
            raise
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError:
            self.stop.now()
            await asyncio.wait([working])
            raise
        working.result()

    async def _see_it_loaded(self, actor: SidecarActor, working: Task[None], began: float) -> None:
        """Wait for the runtime; raise `LoadError` when it cannot load its handler or does not come in time."""
        link, within = actor.workload.link, self._settings.runtime_ready_timeout
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        told = loop.time() + 1.0
        while not link.there.is_set() and not working.done():
            why = why_not_loaded(self._actor.socket, began)
            if why:
                raise LoadError(why)
            if loop.time() > deadline:
                raise LoadError(f"the runtime is not ready after {format_duration(within)}: {link.unready()}")
            if loop.time() > told:
                told = deadline + within
                _log.warning("runtime.waiting", extra={"fields": {"socket": str(self._actor.socket)}})
            await asyncio.sleep(_LOOK)

    async def _connect(self) -> Transport | None:
        """An open transport, however long it is away; None when told to stop before."""
        url, tries = self._settings.url, 0
        pulse = self.health.pulse(self._actor.spec.name)
        try:
            while not self.stop.requested:
                try:
                    return await abandoned_at(self.stop, open_transport(url))
                except ConnectionLostError as error:
                    pulse.lost(str(error))
                    if not tries:
                        shown = {"url": redact_url(url), "error": str(error)}
                        _log.warning("transport.waiting", extra={"fields": shown})
                    tries += 1
                    await unless(self.stop, asyncio.sleep(_BACK_OFF.backoff(tries) * random.uniform(0.5, 1.0)))
            return None
        finally:
            pulse.end()

    async def _observers(self, stack: AsyncExitStack) -> Observer:
        """Who watches the messages: the metrics when they are served, the gateway when there is one."""
        found: list[Observer] = [] if self._asya is None else [self._asya]
        if self._settings.gateway_url:
            from oncue.sidecar.gateway import Gateway, observer_of

            self._gateway = gateway = Gateway(self._settings.gateway_url)
            stack.push_async_callback(self._end_reports, gateway)
            found.append(observer_of(gateway, self._actor))
        return Observers(found) if found else NOBODY

    async def _end_reports(self, gateway: Gateway) -> None:
        left = self._deadline - time.monotonic() if self._deadline else _LAST_WORDS
        await gateway.close(0.0 if self.forced_by is not None else max(_LEAST, min(left, _LAST_WORDS)))

    # Metrics and health

    @asynccontextmanager
    async def _endpoints(self) -> AsyncIterator[str]:
        settings = self._settings
        if not settings.metrics or not settings.metrics_enabled:
            yield ""
            return
        from prometheus_client import CollectorRegistry, ProcessCollector

        from oncue.metrics import CONTENT_TYPE, OPEN_METRICS, Metrics, wants_open_metrics
        from oncue.sidecar.http import Answer, serve
        from oncue.sidecar.metrics import AsyaMetrics, declare

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        ours = Metrics(registry)
        scheme = settings.url.partition(":")[0].lower()
        self._asya = AsyaMetrics(
            settings.actor_name,
            queue=self._actor.spec.name,
            transport=_TRANSPORTS.get(scheme, scheme),
            happy_end=settings.happy_end,
            error_end=settings.error_end,
            is_end=self._actor.is_end,
            namespace=settings.metrics_namespace,
            registry=registry,
        )
        try:
            declare(settings.custom_metrics, registry)
        except ValueError as error:
            raise ConfigError(f"custom_metrics (ASYA_CUSTOM_METRICS): {error}") from None

        async def metrics(accept: str) -> Answer:
            wanted = wants_open_metrics(accept)
            text = ours.expose(await self._depths(), open_metrics=wanted)
            return Answer(200, text, OPEN_METRICS if wanted else CONTENT_TYPE)

        pages = {
            "/metrics": metrics,
            "/health": self._page(self.health.alive, "OK"),
            "/livez": self._page(self.health.alive, "ok\n"),
            "/readyz": self._page(self.health.ready, "ok\n"),
        }
        forget = [self.events.subscribe(ours), self.events.subscribe(self._asya)]
        try:
            async with serve(settings.metrics, pages) as address:
                yield address
        finally:
            for each in forget:
                each()

    def _page(self, reasons: Callable[[], Sequence[str]], well: str) -> Page:
        from oncue.sidecar.http import Answer

        async def page(_accept: str) -> Answer:
            found = reasons()
            return (
                Answer(503, "".join(f"{reason}\n" for reason in found).encode())
                if found
                else Answer(200, well.encode())
            )

        return page

    async def _depths(self) -> Mapping[str, QueueDepth] | None:
        from oncue.metrics import QueueDepth

        transport, queue = self._transport, self._actor.spec.name
        if transport is None:
            return None
        try:
            async with asyncio.timeout(_DEPTHS_WITHIN):
                depth = await transport.depth(queue)
                dead = await transport.depth(dead_queue_name(queue))
        except (TimeoutError, TransportError) as error:
            _log.debug("the depth of queue %s is not known now: %s", queue, error)
            return None
        return {queue: QueueDepth(depth.ready, depth.leased, depth.delayed, dead.ready)}

    # What is said

    def _say_started(self, address: str) -> None:
        settings = self._settings
        shown = {
            "actor": settings.actor_name,
            "queue": self._actor.spec.name,
            "url": redact_url(settings.url),
            "runtime": "built in" if settings.built_in else str(self._actor.socket),
            "metrics": address,
            "pid": os.getpid(),
        }
        _log.info("sidecar.started", extra={"fields": shown})
