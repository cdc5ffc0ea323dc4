"""What is done to all that is ready in a queue: to look at it, and to drop it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from oncue.core.message import Message
from oncue.transports.polling.source import R
from oncue.transports.polling.tasks import Tasks

MOST_PEEKED = 10_000
"""Messages that are shown at once, whatever the limit."""


async def look(
    tasks: Tasks,
    take: Callable[[int], Awaitable[Sequence[R]]],
    put_back: Callable[[R], Coroutine[Any, Any, None]],
    limit: int,
) -> Sequence[Message]:
    """The oldest of what is ready. `take` takes up to so many of it, which are hidden meanwhile and counted, and none at the end."""
    found: list[R] = []
    limit = min(limit, MOST_PEEKED)
    try:
        while len(found) < limit and (some := await take(limit - len(found))):
            found += some
    finally:
        if found:
            await asyncio.wait([tasks.begin(put_back(each)) for each in found])
    found.sort(key=lambda each: each.first_sent)
    return [each.message for each in found]


async def purge(
    tasks: Tasks, take: Callable[[int], Awaitable[Sequence[R]]], delete: Callable[[R], Coroutine[Any, Any, None]]
) -> int:
    """Drop it; how many those were. What is held or delayed stays, which a service's own way to purge does not know about."""
    dropped = 0
    while some := await take(MOST_PEEKED):
        await asyncio.gather(*(tasks.begin(delete(each)) for each in some))
        dropped += len(some)
    return dropped
