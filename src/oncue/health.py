"""Whether the receive loops of this process are alive and ready; `/livez` and `/readyz` say what this says.

Alive is not "the process is up" but "the receive loop made a round trip to the broker recently".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


class Pulse:
    """One receive loop's sign of life; made by `Health.pulse`."""

    __slots__ = ("_clock", "_end", "error", "last", "queue", "since")

    def __init__(self, queue: str, clock: Callable[[], float], end: Callable[[Pulse], None]) -> None:
        self.queue = queue
        self.since = clock()
        self.last: float | None = None
        self.error = ""
        self._clock = clock
        self._end = end

    def beat(self) -> None:
        """A round trip to the broker succeeded just now."""
        self.last = self._clock()
        self.error = ""

    def lost(self, error: str) -> None:
        """The broker cannot be reached; not ready from now to the next beat."""
        self.error = error or "the broker cannot be reached"

    def end(self) -> None:
        """The loop has ended on purpose and is no longer asked about; may be called twice."""
        self._end(self)


class Health:
    """The pulses of all receive loops of a process.

    ready_within: seconds after a round trip for which a loop counts as ready.
    alive_within: seconds without any round trip after which a loop counts as dead; longer, since a restart does not mend
        a broker that is away.
    """

    def __init__(
        self,
        *,
        ready_within: float = 15.0,
        alive_within: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ready_within = ready_within
        self._alive_within = alive_within
        self._clock = clock
        self._pulses: dict[Pulse, None] = {}
        self._others: dict[object, Callable[[], str]] = {}

    def also(self, reason: Callable[[], str]) -> Callable[[], None]:
        """Ask `reason`, too, why work cannot be done now; empty is that it can. The function returned ends that."""
        asked = object()
        self._others[asked] = reason
        return lambda: self._others.pop(asked, None) and None

    def pulse(self, queue: str) -> Pulse:
        """A new pulse, which is not ready until its first beat."""
        pulse = Pulse(queue, self._clock, lambda ended: self._pulses.pop(ended, None))
        self._pulses[pulse] = None
        return pulse

    def ready(self) -> Sequence[str]:
        """Why work is not done now, a line for each reason; empty when there are loops and all is well."""
        others = [reason for ask in self._others.values() if (reason := ask())]
        if not self._pulses:
            return ["no queue is received from", *others]
        return [*(reason for pulse in self._pulses if (reason := self._unready(pulse))), *others]

    def alive(self) -> Sequence[str]:
        """Which loops have had no round trip for too long, a line for each; empty when all is well."""
        now = self._clock()
        quiet = [(pulse, now - (pulse.since if pulse.last is None else pulse.last)) for pulse in self._pulses]
        return [
            f"queue {pulse.queue}: no round trip to the broker for {seconds:.0f} s"
            for pulse, seconds in quiet
            if seconds > self._alive_within
        ]

    def _unready(self, pulse: Pulse) -> str:
        if pulse.error:
            return f"queue {pulse.queue}: {pulse.error}"
        if pulse.last is None:
            return f"queue {pulse.queue}: not subscribed yet"
        seconds = self._clock() - pulse.last
        if seconds > self._ready_within:
            return f"queue {pulse.queue}: no round trip to the broker for {seconds:.0f} s"
        return ""
