"""Everything that OnCue reports about itself while it runs: one class an event, and the emitter.

Logs, metrics, the worker's status line and users' own listeners are all fed from here; `EVENTS` is the whole table, and the
documentation's is generated from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar

import msgspec

_log = logging.getLogger("oncue.events")


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened in the pump of `queue`. Durations are seconds."""

    name: ClassVar[str]
    level: ClassVar[int] = logging.INFO
    queue: str


class PumpStarted(Event, frozen=True):
    """The pump subscribed to its queue and takes messages."""

    name: ClassVar[str] = "pump.started"
    concurrency: int


class PumpStopping(Event, frozen=True):
    """The pump takes no more messages; `in_flight` handlers may still finish."""

    name: ClassVar[str] = "pump.stopping"
    in_flight: int


class PumpStopped(Event, frozen=True):
    """The pump has ended: `finished` messages were settled while stopping and `released` were given back uncounted."""

    name: ClassVar[str] = "pump.stopped"
    finished: int
    released: int


class BrokerLost(Event, frozen=True):
    """The broker or store cannot be reached; the pump tries again by itself."""

    name: ClassVar[str] = "broker.lost"
    level: ClassVar[int] = logging.WARNING
    error: str


class BrokerBack(Event, frozen=True):
    """The broker or store answers again, `seconds` after it was lost."""

    name: ClassVar[str] = "broker.back"
    seconds: float


class RuntimeLost(Event, frozen=True):
    """The runtime beside a sidecar is away: messages wait until it is back."""

    name: ClassVar[str] = "runtime.lost"
    level: ClassVar[int] = logging.WARNING
    error: str


class RuntimeBack(Event, frozen=True):
    """The runtime is there, `seconds` after it was first looked for or was lost, and works on `concurrency` messages at once."""

    name: ClassVar[str] = "runtime.back"
    seconds: float
    concurrency: int


class MessageStarted(Event, frozen=True):
    """A handler was called with a message."""

    name: ClassVar[str] = "message.started"
    level: ClassVar[int] = logging.DEBUG
    id: str
    attempt: int


class MessageDone(Event, frozen=True):
    """A message was acknowledged, together with `sends` results, after `seconds` in its handler."""

    name: ClassVar[str] = "message.done"
    level: ClassVar[int] = logging.DEBUG
    id: str
    attempt: int
    seconds: float
    sends: int


class MessageRetried(Event, frozen=True):
    """An attempt failed after `seconds`; the next one comes `delay` seconds later."""

    name: ClassVar[str] = "message.retried"
    level: ClassVar[int] = logging.WARNING
    id: str
    attempt: int
    seconds: float
    delay: float
    error: str


class MessageDead(Event, frozen=True):
    """A message went to the dead letters with `error` as its reason."""

    name: ClassVar[str] = "message.dead"
    level: ClassVar[int] = logging.ERROR
    id: str
    attempt: int
    seconds: float
    error: str


class MessageReleased(Event, frozen=True):
    """A message was given back without counting the attempt."""

    name: ClassVar[str] = "message.released"
    level: ClassVar[int] = logging.DEBUG
    id: str
    attempt: int
    seconds: float


class LeaseLost(Event, frozen=True):
    """A message was not settled: its lease had run out, or is left to run out. Somebody else has it now, or will."""

    name: ClassVar[str] = "lease.lost"
    level: ClassVar[int] = logging.WARNING
    id: str
    attempt: int
    seconds: float


class SettleFailed(Event, frozen=True):
    """Settling a message failed; it is tried again while the lease lasts, or in another way when `error` is lasting."""

    name: ClassVar[str] = "settle.failed"
    level: ClassVar[int] = logging.WARNING
    id: str
    error: str


class HandlerAbandoned(Event, frozen=True):
    """A handler ran over its time, in a thread or deaf to its cancellation, and cannot be ended; `abandoned` such are running."""

    name: ClassVar[str] = "handler.abandoned"
    level: ClassVar[int] = logging.WARNING
    abandoned: int


class LoopBlocked(Event, frozen=True):
    """Leases could not be extended for `seconds` because a coroutine kept the event loop to itself without awaiting."""

    name: ClassVar[str] = "loop.blocked"
    level: ClassVar[int] = logging.WARNING
    seconds: float


EVENTS: tuple[type[Event], ...] = (
    PumpStarted,
    PumpStopping,
    PumpStopped,
    BrokerLost,
    BrokerBack,
    RuntimeLost,
    RuntimeBack,
    MessageStarted,
    MessageDone,
    MessageRetried,
    MessageDead,
    MessageReleased,
    LeaseLost,
    SettleFailed,
    HandlerAbandoned,
    LoopBlocked,
)

Listener = Callable[[Event], None]


class Events:
    """Hands events to listeners, in order of subscription, in the caller's thread.

    A listener must be quick and must not block. One that raises is logged, and the others still hear the event.
    """

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def __bool__(self) -> bool:
        """Whether anybody listens: an event that nobody hears need not be made."""
        return bool(self._listeners)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; the function returned ends that."""
        subscription = object()
        self._listeners = {**self._listeners, subscription: listener}
        return lambda: self._forget(subscription)

    def emit(self, event: Event) -> None:
        """Tell every listener. Never raises."""
        for listener in self._listeners.values():
            try:
                listener(event)
            except Exception:
                _log.exception("a listener failed on %s", event.name)

    def _forget(self, subscription: object) -> None:
        self._listeners = {other: listener for other, listener in self._listeners.items() if other is not subscription}


def log_events(event: Event, *, logger: logging.Logger = logging.getLogger("oncue")) -> None:
    """A listener that writes each event as one structured log record, at the event's own level."""
    if logger.isEnabledFor(event.level):
        fields = {field: getattr(event, field) for field in event.__struct_fields__}
        logger.log(event.level, event.name, extra={"fields": fields})
