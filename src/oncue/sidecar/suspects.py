"""Which messages may be the reason that a runtime dies: those that were with it at two of its deaths run one at a time.

So a message that kills its runtime is found out and counts its own attempts, and its neighbours are given back uncounted.
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
    """Counts, by message id, the deaths of runtimes that were seen from near. True while there are any."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[str, int] = OrderedDict()
        self._alone = asyncio.Lock()
        self._watched: str | None = None

    def __bool__(self) -> bool:
        return bool(self._deaths)

    @asynccontextmanager
    async def watch(self, id: str) -> AsyncIterator[None]:
        """Around a call: a message that is suspicious waits until no other of its kind runs. It is clear if it survives."""
        if self._deaths.get(id, 0) < _ALONE:
            yield
            self._deaths.pop(id, None)
            return
        async with self._alone:
            self._watched = id
            try:
                yield
            finally:
                self._watched = None
            self._deaths.pop(id, None)

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
