"""What is done to all that is ready in a queue: to look at it, and to drop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from oncue.core.message import Message
from oncue.transports.sqs.batches import FULL
from oncue.transports.sqs.codec import Received, decode

if TYPE_CHECKING:
    from oncue.transports.sqs.desk import Desk
    from oncue.transports.sqs.queues import Place

MOST_PEEKED = 10_000
"""Messages that are shown at once, whatever the limit."""
_HIDDEN = 60
"""Seconds for which what is looked at is hidden, if this process dies meanwhile."""


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
            back = [desk.tasks.begin(desk.change(place, each.handle, 0)) for each in found]
            await asyncio.wait(back)
    found.sort(key=lambda each: each.first_sent)
    return [each.message for each in found]


async def purge(desk: Desk, queue: str) -> int:
    """Drop it; how many those were. What is held or delayed stays, which SQS' own way to purge does not know about."""
    desk.queues.forget(queue)
    place = await desk.queues.place(queue)
    dropped = 0
    async for received in _all(desk, place, None):
        gone = [desk.tasks.begin(desk.delete(place, each.handle)) for each in received]
        await asyncio.gather(*gone)
        dropped += len(gone)
    return dropped


async def _all(desk: Desk, place: Place, limit: int | None) -> AsyncIterator[Sequence[Received]]:
    count = 0
    while limit is None or count < limit:
        most = FULL if limit is None else min(FULL, limit - count)
        answer = await desk.receive(place, most, 1, _HIDDEN)  # a second, so that the service asks all its machines
        received = [decode(each) for each in answer.get("Messages") or ()]
        if not received:
            return
        count += len(received)
        yield received
