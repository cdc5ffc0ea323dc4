"""What a store needs now and then: old messages dropped, free space given back, a look at its version."""

from __future__ import annotations

import time
from pathlib import Path

from oncue.core.errors import IncompatibleStoreError
from oncue.transports.sqlite.clock import wall
from oncue.transports.sqlite.store import Store

_REST = 1.0
_WORK = 5.0
_FREE_AT_REST = 256
_FREE_AT_WORK = 8192
_SHRINK_BY = 1024


class Upkeep:
    """Run by the writer between transactions. A step takes milliseconds: one after every second of rest, or, where there is
    no rest, every five seconds.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._used = 0.0
        self._waits = False

    def used(self) -> None:
        """Something was written just now."""
        self._used = time.monotonic()
        self._waits = True

    def timeout(self) -> float | None:
        """In how many seconds a step is due if nothing else happens; None if none is."""
        if not self._waits:
            return None
        return max(0.0, max(self._used, self._last) + _REST - time.monotonic())

    def due(self, *, others: bool) -> bool:
        """Whether it is time for a step; `others`: also when nothing was written here."""
        now = time.monotonic()
        if now - self._last >= _WORK:
            return self._waits or others
        return self._waits and now - self._used >= _REST

    def run(self, store: Store, path: Path, version: int) -> None:
        """Take a step. Raise `IncompatibleStoreError` if somebody upgraded the store."""
        resting = time.monotonic() - self._used >= _REST
        self._last = time.monotonic()
        if store.version() > version:
            raise IncompatibleStoreError(f"{path} was upgraded by a newer OnCue while it was in use: upgrade this one")
        for queue in store.known_queues():
            if store.has_old(queue, wall()):
                with store.transaction():
                    store.drop_old(queue, wall())
                return
        free, total = store.free_pages()
        if free > (total // 8 if resting else total // 2) and free > (_FREE_AT_REST if resting else _FREE_AT_WORK):
            store.shrink(_SHRINK_BY)
        elif resting:
            store.checkpoint()
            self._waits = False
