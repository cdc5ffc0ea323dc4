"""One replica of an actor: a pump between its queue and one runtime, routing results as Asya's sidecar does.

The sidecar process runs one; the local supervisor runs one for each runtime that it has started.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Task
from pathlib import Path

import msgspec

from oncue.actors import ActorHandler
from oncue.context import Context
from oncue.core.envelope import decode_envelope
from oncue.core.errors import ConnectionLostError, InvalidEnvelopeError, TransportError
from oncue.core.failure import PARSING_ERROR, Failure
from oncue.core.message import Message
from oncue.core.outcome import Dead, Done, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.ends import Ends, replies_of
from oncue.events import Events, RuntimeBack, RuntimeLost
from oncue.health import Health
from oncue.middleware import Handler, compose
from oncue.outgoing import ERROR_END, HAPPY_END, Outgoing
from oncue.pump import Pump, Stop
from oncue.results import Status
from oncue.settle import OnDead, Settlement, no_sends
from oncue.sidecar.observer import NOBODY, Observer
from oncue.sidecar.workload import RuntimeWorkload
from oncue.stop import cancel, unless
from oncue.transports.base import QueueSpec, Transport
from oncue.workloads import Workload

_log = logging.getLogger("oncue.sidecar")

INFRASTRUCTURE = RetryPolicy(max_attempts=5)
"""How often and how soon a message comes again that failed by no fault of its handler: a runtime that crashed or was lost."""

_AGAIN = 0.5
"""Seconds between tries to reach a transport that is away."""
_AHEAD = 24
"""Messages that a quick runtime is given before it asks: it queues them, and their time begins when their handler does."""


class ActorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica needs to know. Times in seconds.

    attempts: how many attempts may fail by the handler's own fault before the message is given up; one, as in Asya.
    retry: how soon, and how often in all, whatever the reason.
    is_end: takes whole envelopes at the end of their routes and sends nothing on.
    """

    name: str
    socket: Path
    prefix: str = "asya-"
    timeout: float = 300.0
    attempts: int = 1
    retry: RetryPolicy = INFRASTRUCTURE
    happy_end: str = HAPPY_END
    error_end: str = ERROR_END
    is_end: bool = False
    lease: float = 60.0

    @property
    def spec(self) -> QueueSpec:
        """The actor's queue."""
        return QueueSpec(name=self.prefix + self.name, lease=self.lease)

    @property
    def status(self) -> Status | None:
        """What has become of the messages that come here; None for an actor that is not the end of all routes."""
        if not self.is_end:
            return None
        return {self.happy_end: "succeeded", self.error_end: "failed"}.get(self.name)  # type: ignore[return-value]


class SidecarActor:
    """Pumps the messages of one actor to one runtime. `observer` sees what becomes of them."""

    def __init__(
        self,
        settings: ActorSettings,
        transport: Transport,
        *,
        events: Events,
        health: Health,
        observer: Observer = NOBODY,
    ) -> None:
        patience = 10.0 if transport.features.free_release else None
        self.workload = RuntimeWorkload(
            settings.socket, timeout=settings.timeout, attempts=settings.attempts, patience=patience
        )
        self._settings = settings
        self._transport = transport
        self._events = events
        self._health = health
        self._observer = observer
        self._since = time.monotonic()
        self._pump: Pump | None = None

    async def run(self, stop: Stop) -> None:
        """Wait for the runtime, however long that takes, then work until told to stop.

        Nothing is received before the runtime is there. Raises and is cancelled as `Pump.run`.
        """
        queue = self._settings.spec.name
        link = self.workload.link
        pulse = self._health.pulse(queue)
        forget = self._health.also(link.unready)
        link.changed = self._tell
        keeping: Task[None] = asyncio.create_task(link.keep())
        keeping.add_done_callback(lambda ended: None if ended.cancelled() else stop.now())  # it ends only if it fails
        try:
            await unless(stop, _first(keeping, link.there))
            if not self._settings.is_end:
                await unless(stop, self._declare_ends())
            pulse.end()
            if not stop.requested:
                await self._work(stop)
            if keeping.done():
                keeping.result()
        finally:
            forget()
            pulse.end()
            await cancel([keeping])
            await asyncio.shield(self.workload.close())

    async def _declare_ends(self) -> None:
        """Make the queues of the ends where they are missing: who works there may start later than the first message ends."""
        settings = self._settings
        for name in (settings.happy_end, settings.error_end):
            while True:
                try:
                    await self._transport.declare(QueueSpec(name=settings.prefix + name))
                except ConnectionLostError:
                    await asyncio.sleep(_AGAIN)
                    continue
                except TransportError as error:
                    _log.debug("the queue of %s was left as it is: %s", name, error)
                break

    async def _work(self, stop: Stop) -> None:
        settings = self._settings
        queue = settings.spec.name
        handler, on_dead = self._handler()
        policy = settings.retry
        settlement = Settlement(
            transport=self._transport,
            queue=queue,
            retry=msgspec.structs.replace(policy, max_attempts=max(policy.max_attempts, settings.attempts)),
            on_dead=self._observer.on_dead(on_dead),
            events=self._events,
        )
        pulse = self._health.pulse(queue)
        handler = compose(handler, [self._observer.middleware])
        concurrency, ahead = self._capacity()
        pump = self._pump = Pump(settings.spec, settlement, handler, concurrency=concurrency, ahead=ahead, pulse=pulse)
        await pump.run(stop)

    def _handler(self) -> tuple[Handler, OnDead]:
        settings = self._settings
        outgoing = Outgoing(settings.prefix)
        workload = self._observer.workload(self.workload)
        if settings.is_end:
            return EndHandler(settings.name, workload, outgoing, settings.status), no_sends
        ends = Ends(
            outgoing.queue(settings.happy_end),
            outgoing.queue(settings.error_end),
            answers=False,
            asya=True,
            overtime=self.workload.overtime,
        )
        handler = ActorHandler(
            settings.name,
            workload,
            outgoing,
            max_attempts=settings.attempts,
            ends=ends,
            longest=self._transport.features.max_body,
        )
        return handler, handler.on_dead

    def _capacity(self) -> tuple[int, int]:
        """How many messages the runtime works on at the same time, and how many more it may be given."""
        link = self.workload.link
        return link.concurrency, _AHEAD if link.client is not None else 0

    def _tell(self) -> None:
        """Say that the runtime came or went; one that came may have room for more or for fewer messages than before."""
        link, queue = self.workload.link, self._settings.spec.name
        if link.there.is_set():
            if self._pump is not None:
                self._pump.resize(*self._capacity())
            self._events.emit(RuntimeBack(queue, time.monotonic() - self._since, link.concurrency))
        else:
            self._events.emit(RuntimeLost(queue, link.error))
        self._since = time.monotonic()


class EndHandler:
    """The handler of an end actor of the user's own: whole envelopes go to the runtime, and nothing is sent on.

    At the end of all routes, which `status` says it is, who waits is answered from here. What cannot be read, or cannot be
    handled, is set aside and not sent to the error end, which may be this very actor.
    """

    def __init__(self, name: str, workload: Workload, outgoing: Outgoing, status: Status | None) -> None:
        self._name = name
        self._answer = workload.answer
        self._outgoing = outgoing
        self._status = status

    async def __call__(self, message: Message, attempt: int) -> Outcome:
        try:
            envelope = decode_envelope(message.body)
        except InvalidEnvelopeError as error:
            return Dead(Failure(PARSING_ERROR, type(error).__name__, str(error), final=True))
        context = Context(envelope, self._name, attempt, last_attempt=False, compose=self._outgoing.compose_within)
        try:
            answer = await self._answer(envelope, context)
        finally:
            sends = context.end()
        if isinstance(answer, Retry | Dead | Release):
            return answer
        return Done(tuple(sends), replies_of(envelope, message, self._status) if self._status else ())


async def _first(keeping: Task[None], there: asyncio.Event) -> None:
    """Wait until the runtime is there. Raise what ended the link's own task."""
    waiting = asyncio.create_task(there.wait())
    try:
        await asyncio.wait([keeping, waiting], return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
    finally:
        waiting.cancel()
