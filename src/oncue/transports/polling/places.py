"""Where queues are, remembered until one is not there any more."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from oncue.core.errors import OnCueError, QueueNotFoundError, again

P = TypeVar("P")


class Places(Generic[P]):
    """Asks `find` once for all who want to know at the same moment; it returns None for a queue that is not there."""

    def __init__(self, find: Callable[[str], Coroutine[Any, Any, P | None]]) -> None:
        self._find = find
        self._known: dict[str, P] = {}
        self._finding: dict[str, Future[P | None]] = {}

    async def get(self, name: str) -> P:
        """Raise `QueueNotFoundError` if there is none, and whatever `find` raises. May be cancelled."""
        known = self._known.get(name)
        if known is not None:
            return known
        finding = self._finding.get(name)
        if finding is None:
            finding = self._finding[name] = asyncio.ensure_future(self._find(name))
            finding.add_done_callback(lambda done: self._found(name, done))
        try:
            found = await asyncio.shield(finding)
        except OnCueError as error:
            raise again(error) from error.__cause__
        if found is None:
            raise QueueNotFoundError(name)
        return found

    async def look_up(self, name: str) -> P:
        """The same, by asking in any case."""
        self.forget(name)
        return await self.get(name)

    def know(self, name: str, place: P) -> None:
        """It is there."""
        self._known[name] = place

    def forget(self, name: str) -> None:
        """It may be somewhere else, or nowhere; and so may what is being found at the moment."""
        self._known.pop(name, None)
        self._finding.pop(name, None)

    def _found(self, name: str, done: Future[P | None]) -> None:
        latest = self._finding.get(name) is done
        if latest:
            del self._finding[name]
        if not done.cancelled() and done.exception() is None:  # else whoever asked was told, or is gone
            place = done.result()
            if latest and place is not None:
                self._known[name] = place
