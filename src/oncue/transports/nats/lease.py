"""A received message, and what becomes of it.

Each delivery of a message has one successor at most: what is refused, released or lost is published anew, under a name made of
the number that it has in its stream, and then acknowledged. The server takes such a name once. So whoever held a message for too
long, and does not know it yet, puts back nothing that somebody else has put back already, and is told. What is handed out is
always a first delivery: a second one says that whoever had the first is gone, and is published anew as well, before anybody sees it.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from oncue.core.errors import (
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    PartialSendError,
    TransportError,
    again,
)
from oncue.core.message import Message, Send, check_delay
from oncue.transports.nats.codec import Received, head_of, headers, history, name_anew
from oncue.transports.nats.core import tell
from oncue.transports.nats.publisher import Parcel, delayed
from oncue.transports.stages import SUSPECT, Stage

if TYPE_CHECKING:
    from oncue.transports.nats.subscription import NATSSubscription

PROGRESS = b"+WPI"


class NATSLease:
    """Its methods return when the server has done it; a cancelled one may still take effect.

    until: when it is over for whoever holds it. deadline: when the server delivers it to somebody else, at the earliest.
    unsure: whether it was settled once already, and nobody could tell whether that worked. told: who waits for that.
    """

    __slots__ = (
        "arrived", "attempt", "deadline", "message", "received", "reply", "sequence", "stage", "subscription", "suspect",
        "told", "unsure", "until",
    )  # fmt: skip

    def __init__(
        self, subscription: NATSSubscription, received: Received, reply: bytes, sequence: int, now: float
    ) -> None:
        self.subscription = subscription
        self.received = received
        self.reply = reply
        self.sequence = sequence
        self.message: Message = received.message
        self.attempt = received.attempts + 1
        self.suspect = received.lost >= SUSPECT
        self.arrived = now
        self.until = now + subscription.place.spec.lease
        self.deadline = now + subscription.place.wait
        self.stage = Stage.WAITING
        self.unsure = False
        self.told: Future[None] | None = None

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        if sends:
            parcels = await self.subscription.publisher.parcels(sends, self.received.line)
            self._check_held()
            self._begin_settling()
            await self._post(parcels)
        else:
            self._begin_settling()
            future = self._future()
            self._acknowledge(future)
            await future

    async def nack(self, *, delay: float = 0.0) -> None:
        check_delay(delay)
        self._check_held()
        await self._repeat(msgspec.structs.replace(self.received, attempts=self.attempt), delay)

    async def release(self) -> None:
        self._check_held()
        await self._repeat(self.received, 0.0)

    async def extend(self, seconds: float) -> None:
        if not check_delay(seconds) > 0:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 seconds")
        self._check_held()
        subscription = self.subscription
        connection = await subscription.link.connection()
        self._check_held()
        future = self._future()
        now = subscription.loop.time()
        connection.ask(self.reply, PROGRESS, lambda header, _, error: subscription.said(header, error, future, self))
        await future
        if self.stage is Stage.HELD:
            self.until = now + seconds
            self.deadline = now + subscription.place.wait
            subscription.watch(self)

    def give_back(self, received: Received, *, delay: float = 0.0) -> None:
        """Have it come again with that history. Does not wait; what cannot be published comes after its lease."""
        self.stage = Stage.RETURNING
        parcel = self.anew(received, delay)
        self.subscription.publisher.post([parcel], self._given_back)

    def anew(self, received: Received, delay: float = 0.0) -> Parcel:
        """What is to be published for it to come again."""
        return successor(self.subscription, received, self.sequence, delay)

    def _given_back(self, error: TransportError | None) -> None:
        """Its successor is stored, or not. If what acknowledges it is lost, it comes again and finds its successor there."""
        connection = self.subscription.link.current
        if error is not None or connection is None:
            self.subscription.settled(self)
        else:
            connection.ask(self.reply, b"", lambda *_: self.subscription.settled(self))

    async def _repeat(self, received: Received, delay: float) -> None:
        parcel = self.anew(received, delay)
        self._begin_settling()
        await self._post([parcel], anew=True)

    async def _post(self, parcels: Sequence[Parcel], *, anew: bool = False) -> None:
        """Send, and settle when that is stored, also when whoever waits for it does not any more."""
        future = self._future()
        unsure = self.unsure

        def done(error: TransportError | None) -> None:
            if error is not None:
                self.subscription.unsettled(self, unsure=anew and isinstance(error, ConnectionLostError))
                tell(future, _whole(error))
            elif anew and posting.known and not unsure:  # whoever has it now, it is somebody else
                self.subscription.settled(self)
                tell(future, LeaseLostError(self.subscription.name, self.message.id))
            else:
                self._acknowledge(future)

        posting = self.subscription.publisher.post(parcels, done)
        await future

    def _acknowledge(self, future: Future[None]) -> None:
        """Tell the server that it is done, and `future` when the server has heard it."""
        subscription = self.subscription
        connection = subscription.link.current
        if connection is None:
            subscription.unsettled(self)
            tell(future, ConnectionLostError(f"{subscription.link.address.shown}: not connected"))
            subscription.reconnect()
            return
        self.told = future
        connection.ask(self.reply, b"", self._acknowledged)

    def _acknowledged(self, header: bytes, _body: bytes, error: Exception | None) -> None:
        future = self.told
        assert future is not None
        self.subscription.said(header, error, future, self, settles=True)

    def _begin_settling(self) -> None:
        self.stage = Stage.SETTLING
        self.subscription.settling += 1

    def _future(self) -> Future[None]:
        return self.subscription.loop.create_future()

    def _check_held(self) -> None:
        self.subscription.check_open()
        now = self.subscription.loop.time()
        if self.stage is not Stage.HELD or self.until <= now or self.deadline <= now:
            raise LeaseLostError(self.subscription.name, self.message.id)


def successor(subscription: NATSSubscription, received: Received, sequence: int, delay: float = 0.0) -> Parcel:
    """What is published for a message that comes again. There is one name for it, so that it comes once."""
    place = subscription.place
    name, head, body = name_anew(sequence), head_of(received.message), received.message.body
    if delay:
        return delayed(place, head, name, body, delay, history(received))
    return Parcel(place.spec.name, place.subject, headers(head, name, history(received)), body)


def _whole(error: TransportError) -> TransportError:
    """What was sent in part because the connection was lost may be tried again as a whole."""
    if isinstance(error, PartialSendError):
        for failure in error.failed.values():
            if isinstance(failure, ConnectionLostError):
                return again(failure)
    return error
