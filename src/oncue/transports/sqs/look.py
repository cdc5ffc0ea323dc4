"""How all that is ready in a queue is taken out, to look at it or to drop it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from oncue.core.message import Message
from oncue.transports.polling import look as polling
from oncue.transports.sqs.batches import FULL
from oncue.transports.sqs.codec import Received, decode

if TYPE_CHECKING:
    from oncue.transports.sqs.desk import Desk
    from oncue.transports.sqs.queues import Place

_HIDDEN = 60
"""Seconds for which what is looked at is hidden, if this process dies meanwhile."""
_WAIT = 1
"""Seconds, so that the service asks all its machines."""


async def look(desk: Desk, queue: str, limit: int) -> Sequence[Message]:
    """The oldest of what is ready, which is hidden meanwhile, and counted."""
    place = await desk.queues.look_up(queue)
    return await polling.look(
        desk.tasks, partial(_take, desk, place), lambda each: desk.change(place, each.handle, 0), limit
    )


async def purge(desk: Desk, queue: str) -> int:
    """Drop what is ready, and neither what is held nor what is delayed; how many those were."""
    place = await desk.queues.look_up(queue)
    return await polling.purge(desk.tasks, partial(_take, desk, place), lambda each: desk.delete(place, each.handle))


async def _take(desk: Desk, place: Place, most: int) -> Sequence[Received]:
    answer = await desk.receive(place, min(FULL, most), _WAIT, _HIDDEN)
    return [decode(each) for each in answer.get("Messages") or ()]
