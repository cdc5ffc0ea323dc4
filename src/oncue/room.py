"""Places for those who run at the same time, as the pump has for its handlers."""

from __future__ import annotations

import asyncio
from asyncio import Future


class Room:
    """A semaphore whose number of places can change, and whose cost does not grow with the number of those who wait, as that of
    asyncio's does. All who wait do the same work, so the last one comes first: it finds its memory in the processor's caches."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = places
        self._waiting: dict[Future[None], None] = {}

    def resize(self, places: int) -> None:
        """Have so many places from now on. Who has one keeps it."""
        self._free += places - self._places
        self._places = places
        while self._free > 0 and self._waiting:
            self._free -= 1
            self.leave()

    async def enter(self) -> None:
        """Take a place, when there is one. Safe to cancel."""
        if self._free > 0:
            self._free -= 1
            return
        place: Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = None
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._waiting.pop(place, None)
            else:
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place to the one who came last."""
        while self._waiting and self._free >= 0:
            place, _ = self._waiting.popitem()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
