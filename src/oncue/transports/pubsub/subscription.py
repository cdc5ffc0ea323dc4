"""What Pub/Sub has of its own where messages are received: how they are pulled, settled, and held.

Messages are pulled, and not streamed: a pull says how many there is room for, which changes all the time, and brings more at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oncue.core.message import Send
from oncue.transports.base import QueueSpec
from oncue.transports.polling.lines import Parcel
from oncue.transports.polling.source import Arrival, Terms
from oncue.transports.pubsub.codec import Received, decode
from oncue.transports.pubsub.pulls import FULL, pull, waits
from oncue.transports.pubsub.queues import LONGEST_DEADLINE, Place, held

if TYPE_CHECKING:
    from oncue.transports.pubsub.desk import Desk

_PULLS = 4
_AT_ONCE = 1
"""Seconds after which a message of a FIFO queue is shown again. The emulator keeps the order of those whose deadline is over,
and not of those that are given back."""


class PubSubSource:
    """One queue. The service settles each message for its latest receiver only, and says so."""

    log = logging.getLogger("oncue.transports.pubsub")

    def __init__(self, desk: Desk, place: Place, spec: QueueSpec) -> None:
        self._desk = desk
        self._place = place
        self._retention = spec.retention
        self.name = spec.name
        self.terms = Terms(
            lease=spec.lease,
            kept=place.deadline,
            shorten=held(spec.lease) != place.deadline and spec.lease < place.deadline,
            longest_wait=LONGEST_DEADLINE,
            most=FULL,
            polls=1 if place.fifo else _PULLS,
        )

    @property
    def fifo(self) -> bool:
        return self._place.fifo

    async def poll(self, most: int, empty: int | None) -> Sequence[Arrival[Received]]:
        desk = self._desk
        self._place = await desk.queues.place(self.name)
        found = await pull(desk, self._place, most, waits(empty, desk.address))
        at, now = desk.tasks.loop.time(), time.time() * 1000
        return [self._arrival(decode(each, fifo=self.fifo), at, now) for each in found]

    async def parcels(self, sends: Sequence[Send], _cause: Received, /) -> Sequence[Parcel]:
        return await self._desk.parcels(sends)

    def anew(self, received: Received, attempts: int, delay: float) -> Parcel | None:
        if self.fifo or (delay and self._place.later is None):
            return None
        history: dict[str, Any] = {"attempts": attempts, "lost": received.lost, "delay": 0}
        if self._retention is not None:
            history["since"] = received.began
        return self._desk.parcel(self._place, received.text.changed(**history), delay)

    async def delete(self, received: Received, until: float) -> None:
        await self._desk.delete(self.name, self._place.subscription, received.handle, until)

    async def put_off(self, received: Received, seconds: float, until: float) -> None:
        least = _AT_ONCE if self.fifo else 0
        await self._change(received, min(LONGEST_DEADLINE, max(least, math.ceil(seconds))), until)

    async def keep(self, received: Received, seconds: float, until: float) -> float:
        kept = held(seconds)
        await self._change(received, kept, until)
        return kept

    async def _change(self, received: Received, seconds: int, until: float) -> None:
        await self._desk.change(self.name, self._place.subscription, received.handle, seconds, until)

    def _arrival(self, received: Received, at: float, now: float) -> Arrival[Received]:
        old = self._retention is not None and now - received.began >= self._retention * 1000
        delayed = self.fifo and received.text.head.delay
        return Arrival(received, at, (received.due - now) / 1000 if delayed else 0.0, old)
