"""Deletes from the servers' disks what is done, of topics that were made here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from oncue.core.errors import TransportError
from oncue.transports.kafka.ledger import Ledger
from oncue.transports.kafka.registry import Record

if TYPE_CHECKING:
    from oncue.transports.kafka.desk import Desk

_EVERY = 5.0


class Log:
    """The topic of one queue."""

    def __init__(self, desk: Desk, record: Record) -> None:
        self._desk = desk
        self._record = record
        self._trimmed: dict[int, int] = {}
        self._next = time.monotonic() + _EVERY

    async def trim(self, ledgers: Iterable[Ledger], *, now: bool = False) -> None:
        """Delete what is committed as done, unless that was just tried, or the queue was deleted or made anew meanwhile."""
        if not self._record.made or not (now or time.monotonic() >= self._next):
            return
        self._next = time.monotonic() + _EVERY
        known = self._desk.registry.records.get(self._record.spec.name)
        if known is None or known.incarnation != self._record.incarnation:
            return
        done = {
            each.partition: each.attempted[0][0]
            for each in ledgers
            if len(each.attempted) == 1 and each.attempted[0][0] > self._trimmed.get(each.partition, 0)
        }
        if done:
            with suppress(TransportError):
                await self._desk.cluster.drop(self._record.topic, done)
                self._trimmed |= done
