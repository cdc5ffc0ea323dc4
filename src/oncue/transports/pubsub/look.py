"""How all that is ready in a queue is taken out, to look at it or to drop it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from oncue.core.message import Message
from oncue.transports.polling import look as polling
from oncue.transports.pubsub.codec import Received, decode
from oncue.transports.pubsub.pulls import FULL, pull

if TYPE_CHECKING:
    from oncue.transports.pubsub.desk import Desk
    from oncue.transports.pubsub.queues import Place

_WAIT = 0.5
"""Seconds without any after which there are no more."""


async def look(desk: Desk, queue: str, limit: int) -> Sequence[Message]:
    """The oldest of what is ready, which is hidden meanwhile, and counted."""
    place = await desk.queues.look_up(queue)
    soon = 1 if place.fifo else 0
    return await polling.look(
        desk.tasks,
        partial(_take, desk, place),
        lambda each: desk.change(queue, place.subscription, each.handle, soon),
        limit,
    )


async def purge(desk: Desk, queue: str) -> int:
    """Drop what is ready, and neither what is held nor what is delayed; how many those were."""
    place = await desk.queues.look_up(queue)
    return await polling.purge(
        desk.tasks, partial(_take, desk, place), lambda each: desk.delete(queue, place.subscription, each.handle)
    )


async def _take(desk: Desk, place: Place, most: int) -> Sequence[Received]:
    return [decode(each) for each in await pull(desk, place, min(FULL, most), _WAIT)]
