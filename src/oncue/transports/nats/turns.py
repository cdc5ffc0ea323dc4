"""Whose turn it is to ask for many messages, of the subscriptions that share a connection and have plenty waiting.

All could ask for a few each, all the time. But then the server works for all consumers at once, and keeps a file for each of
them up to date, and what is on its way here is of all queues and no longer fits the processor's caches: a message costs either
side twice as much. So they ask in turn, each for many.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable

AT_ONCE = 4
"""Turns under way: while the messages of one are worked on, those of the others are on their way."""
_LONGEST = 0.05
"""Seconds after which the next one need not wait any longer for a turn to be over, because its handlers take their time."""


class Turns:
    """In the order of asking. Whoever asks may have a turn, or wait for one, but not both."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Callable[[], None], None] = {}
        self._under_way: dict[Callable[[], None], TimerHandle] = {}

    def ask(self, begin: Callable[[], None]) -> None:
        """Have `begin` called when it is its turn; perhaps at once. Asked again before that, or during the turn: nothing."""
        if begin not in self._under_way:
            self._waiting[begin] = None
            self._go_on()

    def over(self, begin: Callable[[], None]) -> None:
        """The turn is over, or not wanted any more. May be said at any time."""
        self._waiting.pop(begin, None)
        timer = self._under_way.pop(begin, None)
        if timer is not None:
            timer.cancel()
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting and len(self._under_way) < AT_ONCE:
            begin = next(iter(self._waiting))
            del self._waiting[begin]
            self._under_way[begin] = self._loop.call_later(_LONGEST, self.over, begin)
            begin()
