"""A received message, and what becomes of it.

The server knows no leases: a message is ours until it is settled or the channel is over. So the time of a lease is kept here.
When it runs out the message goes back to its queue, counted by the server; what is refused or released is published anew, with
the history that it is to have, and then settled. If this process is stopped or dies, the server notices by its heartbeats.
"""

from __future__ import annotations

import math
from asyncio import Future
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from oncue.core.errors import (
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    PartialSendError,
    TransportError,
    again,
)
from oncue.core.message import Message, Send, check_delay
from oncue.transports.rabbitmq.amqp import Delivery
from oncue.transports.rabbitmq.codec import Parcel, Received, repeat
from oncue.transports.rabbitmq.ladder import EXCHANGE, key_of, levels
from oncue.transports.stages import SUSPECT, Stage

if TYPE_CHECKING:
    from oncue.transports.rabbitmq.subscription import RabbitMQSubscription


class RabbitMQLease:
    """Its methods return when the server has what was sent, and was told the rest; a cancelled one may still take effect."""

    __slots__ = ("arrived", "attempt", "delivery", "message", "received", "stage", "subscription", "suspect", "until")

    def __init__(self, subscription: RabbitMQSubscription, delivery: Delivery, received: Received, now: float) -> None:
        self.subscription = subscription
        self.delivery = delivery
        self.received = received
        self.message: Message = received.message
        self.attempt = received.attempts + 1
        self.suspect = received.lost >= SUSPECT
        self.arrived = now
        self.until = math.inf
        self.stage = Stage.WAITING

    def hand_out(self, now: float) -> None:
        """It is somebody's from now on."""
        self.stage = Stage.HELD
        self._last_until(now + self.subscription.spec.lease)

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        if not sends:
            self.subscription.settled(self)
            return
        parcels = await self.subscription.desk.parcels(sends)
        try:
            await self._post(parcels)
        except PartialSendError as error:
            for failure in error.failed.values():
                if isinstance(failure, ConnectionLostError):
                    raise again(failure) from error  # all of it may be tried again
            raise

    async def nack(self, *, delay: float = 0.0) -> None:
        self._check_held()
        await self._post([await self._anew(replace(self.received, attempts=self.attempt), delay)])

    async def release(self) -> None:
        self._check_held()
        await self._post([await self._anew(self.received)])

    async def extend(self, seconds: float) -> None:
        longest = self.subscription.desk.address.longest_hold
        if not check_delay(seconds) > 0 or seconds > longest:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 and at most {longest:g} seconds")
        self._check_held()
        self._last_until(self.subscription.loop.time() + seconds)

    def give_back(self, received: Received) -> None:
        """Have it come again with that history. Does not wait; what cannot be published is counted by the server."""
        self.stage = Stage.RETURNING
        properties = repeat(self.delivery, received, retention=self.subscription.spec.retention)
        parcel = Parcel("", self.subscription.name, properties, self.delivery.body)
        self.subscription.desk.publisher.post([parcel], self._given_back)

    def _given_back(self, error: TransportError | None) -> None:
        if error is None:
            self.subscription.settled(self)
        else:
            self.subscription.requeue(self, error)

    def _last_until(self, until: float) -> None:
        """The server takes it away at some time, whatever is asked for here."""
        self.until = min(until, self.arrived + self.subscription.desk.address.longest_hold)
        self.subscription.watch(self.until)

    async def _anew(self, received: Received, delay: float = 0.0) -> Parcel:
        subscription = self.subscription
        if not check_delay(delay):
            properties = repeat(self.delivery, received, retention=subscription.spec.retention)
            return Parcel("", subscription.name, properties, self.delivery.body)
        way = levels(delay)
        await subscription.desk.prepare(subscription.name, way)
        properties = repeat(self.delivery, received, retention=subscription.spec.retention, due=delay)
        return Parcel(EXCHANGE, key_of(subscription.name, way), properties, self.delivery.body)

    async def _post(self, parcels: Sequence[Parcel]) -> None:
        """Send, and settle when that is stored, also when whoever waits for it does not any more."""
        self._check_held()
        self.stage = Stage.SETTLING
        future: Future[None] = self.subscription.loop.create_future()

        def done(error: TransportError | None) -> None:
            if error is not None:
                self.subscription.unsettled(self)
            elif not self.subscription.settled(self):
                error = LeaseLostError(self.subscription.name, self.message.id)
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.subscription.desk.publisher.post(parcels, done)
        await future

    def _check_held(self) -> None:
        self.subscription.check_open()
        if self.stage is not Stage.HELD or self.until <= self.subscription.loop.time():
            raise LeaseLostError(self.subscription.name, self.message.id)
