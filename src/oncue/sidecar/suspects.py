"""Which messages may be the reason that a runtime, or a handler's process in it, dies: such run one at a time.

So a message that kills is found out and counts its own attempts, and its neighbours finish without it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

_MOST = 10_000
_ALONE = 2
"""A message that was there at one death may have been a neighbour, as at every restart; at the second it is looked at alone."""


class Suspects:
    """Counts, by message id, the deaths that were seen from near. True while there are any."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[str, int] = OrderedDict()
        self._changed = asyncio.Condition()
        self._together = 0
        self._watched: str | None = None

    def __bool__(self) -> bool:
        return bool(self._deaths)

    @property
    def watched(self) -> str | None:
        """The suspicious message that runs now, if there is one."""
        return self._watched

    def died(self, ids: Iterable[str]) -> None:
        """A runtime died while it worked on these."""
        for id in ids:
            self._deaths[id] = self._deaths.get(id, 0) + 1
        while len(self._deaths) > _MOST:
            self._deaths.popitem(last=False)

    def crashed(self, id: str) -> None:
        """The process of its handler died while it worked on this, and perhaps on others."""
        self._deaths[id] = self._deaths.get(id, 0) + _ALONE
        self.died(())

    def survived(self, id: str) -> None:
        """Its handler has answered, whatever it said."""
        self._deaths.pop(id, None)

    @asynccontextmanager
    async def watch(self, id: str) -> AsyncIterator[None]:
        """Around a call: who has seen two deaths runs beside those only that have seen none."""
        seen = self._deaths.get(id, 0)
        if not seen:
            yield
            return
        enter, leave = (self._enter_alone, self._leave_alone) if seen >= _ALONE else (self._enter, self._leave)
        await enter(id)
        try:
            yield
        finally:
            await asyncio.shield(leave())

    async def _enter(self, _id: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._watched is None)
            self._together += 1

    async def _leave(self) -> None:
        async with self._changed:
            self._together -= 1
            self._changed.notify_all()

    async def _enter_alone(self, id: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._watched is None and not self._together)
            self._watched = id

    async def _leave_alone(self) -> None:
        async with self._changed:
            self._watched = None
            self._changed.notify_all()
