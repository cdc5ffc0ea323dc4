"""Since when an answer may have lain here unread.

The service counts the time of a lease from the moment when it hands out the message. A process that is frozen, or that computes
without a pause, reads the answer later, and would take an old lease for a new one. So a tick is kept as long as answers are
awaited: what is read right after one that came late may have come at any time since the one before.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle

BLIND = 1.0
"""Seconds by which an answer may have come earlier than is said: messages are asked for that much longer."""
_TICK = 0.4
_AFTER = 1.0
"""Seconds after a late tick in which answers are still read that came before it."""


class Clock:
    """The event loop's time, with an eye on its gaps."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._awaited = 0
        self._ticked = 0.0
        self._gap_began = self._gap_ended = float("-inf")
        self._timer: TimerHandle | None = None

    def begin(self) -> None:
        """An answer is awaited from now on."""
        self._awaited += 1
        if self._timer is None:
            self._ticked = self._loop.time()
            self._timer = self._loop.call_later(_TICK, self._tick)

    def end(self) -> float:
        """It has come; the moment since when it may have been there, at most `BLIND` seconds too late."""
        now = self._loop.time()
        self._look(now)
        self._awaited -= 1
        return self._gap_began if now - self._gap_ended < _AFTER else now

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, now: float) -> None:
        if now - self._ticked > BLIND:
            if self._ticked > self._gap_ended + _AFTER:  # gaps that follow each other are one
                self._gap_began = self._ticked
            self._gap_ended = now
        self._ticked = now

    def _tick(self) -> None:
        self._look(self._loop.time())
        self._timer = self._loop.call_later(_TICK, self._tick) if self._awaited else None
