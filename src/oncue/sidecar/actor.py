"""One replica of an actor: a pump between its queue and one runtime, routing results as Asya's sidecar does.

The sidecar process runs one; the local supervisor runs one for each runtime that it has started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from oncue.actors import ActorHandler
from oncue.context import Context
from oncue.core.envelope import decode_envelope
from oncue.core.errors import InvalidEnvelopeError
from oncue.core.failure import PARSING_ERROR, Failure
from oncue.core.message import Message
from oncue.core.outcome import Dead, Done, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.ends import Ends
from oncue.events import Events
from oncue.health import Health
from oncue.middleware import Middleware, compose
from oncue.outgoing import ERROR_END, HAPPY_END, Outgoing
from oncue.pump import Pump, Stop
from oncue.settle import OnDead, Settlement, no_sends
from oncue.sidecar.workload import RuntimeWorkload
from oncue.stop import unless
from oncue.transports.base import QueueSpec, Transport

INFRASTRUCTURE = RetryPolicy(max_attempts=5)
"""How often and how soon a message comes again that failed by no fault of its handler: a runtime that crashed or was lost."""


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

    @property
    def spec(self) -> QueueSpec:
        """The actor's queue."""
        return QueueSpec(name=self.prefix + self.name)


class SidecarActor:
    """Pumps the messages of one actor to one runtime. `middleware` wraps its handler, the first outermost."""

    def __init__(
        self,
        settings: ActorSettings,
        transport: Transport,
        *,
        events: Events,
        health: Health,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self.workload = RuntimeWorkload(settings.socket, timeout=settings.timeout, attempts=settings.attempts)
        self._settings = settings
        self._transport = transport
        self._events = events
        self._health = health
        self._middleware = middleware

    async def run(self, stop: Stop) -> None:
        """Wait for the runtime, however long that takes, then work until told to stop.

        Nothing is received before the runtime is there. Raises and is cancelled as `Pump.run`.
        """
        settings = self._settings
        pulse = self._health.pulse(settings.spec.name)
        try:
            concurrency = await unless(stop, self.workload.introduce())
            if concurrency is None:
                return
            handler, on_dead = self._handler()
            settlement = Settlement(
                transport=self._transport,
                queue=settings.spec.name,
                retry=msgspec.structs.replace(
                    settings.retry, max_attempts=max(settings.retry.max_attempts, settings.attempts)
                ),
                on_dead=on_dead,
                events=self._events,
            )
            pump = Pump(
                settings.spec,
                settlement,
                compose(handler, self._middleware),
                concurrency=concurrency,
                pulse=pulse,
            )
            await pump.run(stop)
        finally:
            pulse.end()
            await asyncio.shield(self.workload.close())

    def _handler(self) -> tuple[ActorHandler | EndHandler, OnDead]:
        settings = self._settings
        outgoing = Outgoing(settings.prefix)
        if settings.is_end:
            return EndHandler(settings.name, self.workload, outgoing), no_sends
        ends = Ends(
            outgoing.queue(settings.happy_end), outgoing.queue(settings.error_end), answers=False, original=True
        )
        handler = ActorHandler(
            settings.name,
            self.workload,
            outgoing,
            max_attempts=settings.attempts,
            ends=ends,
            longest=self._transport.features.max_body,
        )
        return handler, handler.on_dead


class EndHandler:
    """The handler of an end actor of the user's own: whole envelopes go to the runtime, and nothing comes of them.

    What cannot be read is set aside and not sent to the error end, which may be this very actor.
    """

    def __init__(self, name: str, workload: RuntimeWorkload, outgoing: Outgoing) -> None:
        self._name = name
        self._workload = workload
        self._outgoing = outgoing

    async def __call__(self, message: Message, attempt: int) -> Outcome:
        try:
            envelope = decode_envelope(message.body)
        except InvalidEnvelopeError as error:
            return Dead(Failure(PARSING_ERROR, type(error).__name__, str(error), final=True))
        context = Context(envelope, self._name, attempt, last_attempt=False, compose=self._outgoing.compose_within)
        answer = await self._workload.answer(envelope, context)
        sends = context.end()
        if isinstance(answer, Retry | Dead | Release):
            return answer
        return Done(tuple(sends))
