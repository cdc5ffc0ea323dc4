"""Moves what is due to its queue, where the server is too old to publish it by itself.

Delayed messages lie in the stream under subjects of their own, and a consumer of those hands each of them out when it is due:
until then it is refused with the delay that is left, which the server keeps. All who subscribe to the queue take part, and
whoever counts or looks moves first what is due.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import Future
from collections.abc import Callable

import msgspec

from oncue.core.errors import ConnectionLostError, TransportError, again
from oncue.transports.nats.codec import delivery_of, due_of, name_anew, without_due
from oncue.transports.nats.faults import fault
from oncue.transports.nats.intake import Intake, take
from oncue.transports.nats.place import LATER, Place, nanoseconds
from oncue.transports.nats.publisher import Parcel, Publisher
from oncue.transports.nats.queues import Queues

_AHEAD = 256
_PAUSE = 1.0
"""Seconds until the next attempt, when the queue or the server is away."""


class Mover:
    """Works from `begin` until `stop`."""

    def __init__(self, queues: Queues, publisher: Publisher, place: Callable[[], Place]) -> None:
        self._publisher = publisher
        self._place = place
        self._intake = Intake(queues, place, lambda: LATER, self._arrived, self._ended)
        self._intake.on_room = self.begin
        self._stopped = False

    def begin(self) -> None:
        """Take what there is."""
        if not self._stopped and self._intake.asked < _AHEAD // 2:
            self._intake.want(_AHEAD - self._intake.asked)

    async def stop(self) -> None:
        """Return when nothing more can come."""
        self._stopped = True
        await self._intake.stop()

    def _arrived(self, reply: bytes, header: bytes, body: bytes) -> None:
        _move(self._publisher, self._place(), reply, header, body)
        self.begin()

    def _ended(self, error: TransportError) -> None:
        if isinstance(error, ConnectionLostError) and not self._stopped:
            self._intake.loop.call_later(_PAUSE, self.begin)


async def move_due(queues: Queues, publisher: Publisher, place: Place) -> None:
    """Move what is due now."""
    while True:
        found = await take(queues, place, LATER, _AHEAD)
        moving = [future for each in found if (future := _move(publisher, place, *each)) is not None]
        for problem in await asyncio.gather(*moving):
            if problem is not None:
                raise again(problem)
        if len(found) < _AHEAD:
            return


def _move(
    publisher: Publisher, place: Place, reply: bytes, header: bytes, body: bytes
) -> Future[TransportError | None] | None:
    """Move a message, or say when it is to come again. What came of it; None if it is not due yet."""
    connection = publisher.link.current
    if connection is None:
        return None
    left = due_of(header) - time.time() - place.skew
    if left > 0:
        connection.publish(reply, b"-NAK %b" % msgspec.json.encode({"delay": nanoseconds(left)}))
        return None
    moved: Future[TransportError | None] = asyncio.get_running_loop().create_future()

    def acknowledged(_header: bytes, _body: bytes, error: Exception | None) -> None:
        if not moved.done():
            moved.set_result(None if error is None else fault(error, publisher.link.address.shown))

    def done(error: TransportError | None) -> None:
        now = publisher.link.current
        if error is None and now is not None:  # whoever counts may only go on when it is not there twice
            now.ask(reply, b"", acknowledged)
        elif not moved.done():
            moved.set_result(error)

    _, sequence = delivery_of(reply)
    parcel = Parcel(place.spec.name, place.subject, without_due(header, name_anew(sequence)), body)
    publisher.post([parcel], done)
    return moved
