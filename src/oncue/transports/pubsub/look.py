"""What is done to all that is ready in a queue: to look at it, and to drop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from oncue.core.message import Message
from oncue.transports.pubsub.codec import Received, decode
from oncue.transports.pubsub.pulls import FULL, pull

if TYPE_CHECKING:
    from oncue.transports.pubsub.desk import Desk
    from oncue.transports.pubsub.queues import Place

MOST_PEEKED = 10_000
"""Messages that are shown at once, whatever the limit."""
_WAIT = 0.5
"""Seconds without any after which there are no more."""


async def look(desk: Desk, queue: str, limit: int) -> Sequence[Message]:
    """The oldest of what is ready, which is hidden meanwhile, and counted."""
    desk.queues.forget(queue)
    place = await desk.queues.place(queue)
    found: list[Received] = []
    limit = min(limit, MOST_PEEKED)
    try:
        async for received in _all(desk, place, limit):
            found += received
    finally:
        if found:
            seconds = 1 if place.fifo else 0
            back = [desk.tasks.begin(desk.change(queue, place.subscription, each.handle, seconds)) for each in found]
            await asyncio.wait(back)
    found.sort(key=lambda each: each.first_sent)
    return [each.message for each in found]


async def purge(desk: Desk, queue: str) -> int:
    """Drop it; how many those were. What is held or delayed stays, which Pub/Sub's own way, to seek, does not know about."""
    desk.queues.forget(queue)
    place = await desk.queues.place(queue)
    dropped = 0
    async for received in _all(desk, place, None):
        gone = [desk.tasks.begin(desk.delete(queue, place.subscription, each.handle)) for each in received]
        await asyncio.gather(*gone)
        dropped += len(gone)
    return dropped


async def _all(desk: Desk, place: Place, limit: int | None) -> AsyncIterator[Sequence[Received]]:
    count = 0
    while limit is None or count < limit:
        most = FULL if limit is None else min(FULL, limit - count)
        received = [decode(each) for each in await pull(desk, place, most, _WAIT)]
        if not received:
            return
        count += len(received)
        yield received
