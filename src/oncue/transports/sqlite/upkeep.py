"""What a store needs now and then: old messages dropped, free space given back, a look at its version."""

from __future__ import annotations

import time
from pathlib import Path

from oncue.core.errors import IncompatibleStoreError
from oncue.transports.sqlite.clock import wall
from oncue.transports.sqlite.store import Store

_EVERY = 1.0
_FREE_AT_REST = 256
_FREE_AT_WORK = 4096
_SHRINK_BY = 512


class Upkeep:
    """Run by the writer between transactions; a step takes milliseconds."""

    def __init__(self) -> None:
        self._next = 0.0
        self._worked = False

    def used(self) -> None:
        """Something was written since."""
        self._worked = True

    def timeout(self) -> float | None:
        """In how many seconds the next step is due if nothing else happens; None if none is."""
        return max(0.0, self._next - time.monotonic()) if self._worked else None

    def run(self, store: Store, path: Path, version: int) -> None:
        """Do the next step if it is time for one. Raise `IncompatibleStoreError` if somebody upgraded the store."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        if store.version() > version:
            raise IncompatibleStoreError(f"{path} was upgraded by a newer OnCue while it was in use: upgrade this one")
        for queue in store.known_queues():
            if store.has_old(queue, wall()):
                with store.transaction():
                    store.drop_old(queue, wall())
                self._worked = True
                self._next = now
        free, total = store.free_pages()
        if free > _FREE_AT_REST and free > total // 8:
            store.shrink(_SHRINK_BY)
            self._worked = True
            self._next = now
        elif self._worked:
            store.checkpoint()
            self._worked = False
