"""What is delayed waits beside its queue, and whoever listens to the queue moves it there when it is due.

It lies in a topic and a subscription of its own. Each message of it is held by one of the consumers, and hidden from the others for
as long as Pub/Sub can hide it, ten minutes at a time. What is due soon is kept here, to be moved at the right moment.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from asyncio import Task
from typing import TYPE_CHECKING, Any

from oncue.core.errors import OnCueError, QueueNotFoundError
from oncue.transports.polling.lines import send
from oncue.transports.pubsub.codec import Received, decode
from oncue.transports.pubsub.pulls import FULL, pull, waits
from oncue.transports.pubsub.queues import LONGEST_DEADLINE, Place

if TYPE_CHECKING:
    from oncue.transports.pubsub.desk import Desk

_log = logging.getLogger("oncue.transports.pubsub")

_SOON = 30.0
"""Seconds; what is due within them is kept here, if there is room."""
_ROOM = 16_000_000
"""Bytes of messages that are kept here."""
_MARGIN = 1.0
"""Seconds that moving may take; for so much longer it stays hidden."""
_OLD = 86_400_000
"""Milliseconds after which a message is sent anew, so that Pub/Sub does not drop it for its age."""
_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Mover:
    """One for each queue that this transport listens to, however often: from the first subscription to the last."""

    def __init__(self, desk: Desk, place: Place) -> None:
        self._desk = desk
        self._place = place
        self._later = desk.queues.subscription(place.later or "")
        self._kept: dict[str, asyncio.TimerHandle] = {}
        self._room = _ROOM
        self._pulling = False
        self._stopped = False
        self._task: Task[None] = desk.tasks.loop.create_task(self._run())
        self.users = 0

    async def stop(self) -> None:
        """Return when nothing that was pulled is left here; may be called twice."""
        self._stopped = True
        if not self._pulling:  # a pull that is given up may have been answered already
            self._task.cancel()
        await asyncio.wait([self._task])
        for handle in self._kept.values():
            handle.cancel()  # they come to somebody else at about the time when they are due
        self._kept.clear()

    async def _run(self) -> None:
        empty = failed = 0
        while not self._stopped:
            try:
                messages = await self._pull(waits(empty, self._desk.address))
                empty, failed = (0, 0) if messages else (empty + 1, 0)
            except OnCueError as error:
                if not isinstance(error, QueueNotFoundError):
                    _log.debug("what is delayed in queue %r cannot be looked at: %s", self._place.name, error)
                await asyncio.sleep(min(_LONGEST_PAUSE, _PAUSE * 2 ** min(failed, 10)))
                failed += 1
                continue
            now = time.time() * 1000
            for there in messages:
                self._take(decode(there), now)

    async def _pull(self, wait: float) -> Any:
        self._pulling = True
        try:
            return await pull(self._desk, self._place, FULL, wait, self._later)
        finally:
            self._pulling = False

    def _take(self, received: Received, now: float) -> None:
        rest = (received.due - now) / 1000
        if rest <= 0:
            self._desk.tasks.begin(self._move(received, 0.0))
        elif now - received.sent > _OLD and rest > LONGEST_DEADLINE:
            self._desk.tasks.begin(self._move(received, rest))
        else:
            self._desk.tasks.begin(self._hide(received, min(LONGEST_DEADLINE, math.ceil(rest + _MARGIN))))
            size = len(received.message.body) + 1000
            if rest <= _SOON and size <= self._room and not self._stopped:
                self._room -= size
                self._kept[received.handle] = self._desk.tasks.loop.call_later(rest, self._due, received, size)

    def _due(self, received: Received, size: int) -> None:
        self._kept.pop(received.handle, None)
        self._room += size
        self._desk.tasks.begin(self._move(received, 0.0))

    async def _hide(self, received: Received, seconds: int) -> None:
        try:
            await self._desk.change(self._place.name, self._later, received.handle, seconds)
        except OnCueError as error:
            _log.debug("a delayed message of queue %r comes again too early: %s", self._place.name, error)

    async def _move(self, received: Received, rest: float) -> None:
        """Into its queue, or once more to where it waits."""
        changes = {"delay": 0} if rest <= 0 else {}
        try:
            await send([self._desk.parcel(self._place, received.text.changed(**changes), max(0.0, rest))])
            await self._desk.delete(self._place.name, self._later, received.handle)
        except OnCueError as error:
            _log.debug("a delayed message of queue %r is not moved yet: %s", self._place.name, error)
