"""Those who wait in `receive` of one subscription until there is something for them."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Future
from collections.abc import Callable


class Receivers:
    """Wakes as many as there are messages for. Whoever was woken and has not run yet is counted: a message that comes meanwhile
    wakes one more and not all over again, which else is most of the work where many wait for messages that come one by one.
    The last one comes first: what it needs is still in the processor's caches, and those who wait are all alike.

    available: how many could get a message now. Whoever returns from `wait` has to look again, because others may be faster.
    """

    def __init__(self, available: Callable[[], int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._available = available
        self._waiting: dict[Future[None], None] = {}
        self._on_their_way = 0

    def __bool__(self) -> bool:
        """Whether anybody waits who was not woken."""
        return bool(self._waiting)

    async def wait(self) -> None:
        """Return when woken, or raise what `fail` was given. Safe to cancel: it is the next one's turn then."""
        waiter: Future[None] = self._loop.create_future()
        self._waiting[waiter] = None
        try:
            await waiter
        except CancelledError:
            if waiter.cancelled():
                self._waiting.pop(waiter, None)
            elif waiter.exception() is None:
                self._on_their_way -= 1
                self.wake()
            raise
        self._on_their_way -= 1

    def wake(self) -> None:
        """There are more messages, or there is more room for them."""
        waiting = self._waiting
        if not waiting:
            return
        count = self._available() - self._on_their_way
        while waiting and count > 0:
            waiter, _ = waiting.popitem()
            if not waiter.done():
                waiter.set_result(None)
                self._on_their_way += 1
                count -= 1

    def fail(self, error: Callable[[], Exception]) -> None:
        """Wake all with an error each, because whoever gets one adds to its traceback."""
        while self._waiting:
            waiter, _ = self._waiting.popitem()
            if not waiter.done():
                waiter.set_exception(error())
