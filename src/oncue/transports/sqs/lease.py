"""A received message, and what becomes of it.

The service may take a delete with an old handle without a word, so the time of a lease is kept here as well, and nothing is asked
for once it is over. What is refused or released is sent anew with the history that it is to have, and then deleted; in a FIFO
queue, where that would change the order, it is shown again by the service, which counts that as an attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from oncue.core.errors import (
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    MessageTooLargeError,
    OnCueError,
    PartialSendError,
    QueueNotFoundError,
    again,
)
from oncue.core.message import Message, Send, check_delay
from oncue.transports.sqs.codec import Received, repeat

if TYPE_CHECKING:
    from oncue.transports.sqs.subscription import SQSSubscription

SUSPECT = 2
"""A message that was lost so often with whoever held it may be what ends its consumers."""


class Stage(IntEnum):
    WAITING = 0  # nobody has received it yet
    HELD = 1
    SETTLING = 2
    RETURNING = 3  # it goes back unseen
    OVER = 4


class SQSLease:
    """Its methods return when the service has done it; a cancelled one still takes effect."""

    __slots__ = ("arrived", "attempt", "message", "received", "stage", "subscription", "suspect", "until")

    def __init__(self, subscription: SQSSubscription, received: Received, arrived: float) -> None:
        self.subscription = subscription
        self.received = received
        self.message: Message = received.message
        self.attempt = received.attempts
        self.suspect = received.lost >= SUSPECT
        self.arrived = arrived
        self.until = arrived + subscription.lease
        self.stage = Stage.WAITING

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        desk = self.subscription.desk
        parcels = await desk.parcels(sends, self.received.number) if sends else ()
        await self._settle(self._ack(parcels))

    async def nack(self, *, delay: float = 0.0) -> None:
        check_delay(delay)
        if self.subscription.place.fifo and delay > self.subscription.desk.address.longest_hold:
            raise InvalidValueError(f"delay {delay!r}: in a FIFO queue expected at most 12 hours")
        await self._settle(self._again(delay, counted=True))

    async def release(self) -> None:
        await self._settle(self._again(0.0, counted=False))

    async def extend(self, seconds: float) -> None:
        longest = self.subscription.desk.address.longest_hold
        if not check_delay(seconds) > 0 or seconds > longest:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 and at most {longest:g} seconds")
        self._check_held()
        await asyncio.shield(self.subscription.desk.begin(self._extend(seconds)))

    def give_back(self, delay: float = 0.0) -> None:
        """Have it come again, uncounted where that can be. Does not wait."""
        self.stage = Stage.RETURNING
        self.subscription.desk.begin(self._give_back(delay))

    def drop(self) -> None:
        """It is too old. Does not wait."""
        self.stage = Stage.RETURNING
        self.subscription.desk.begin(self._drop())

    async def _settle(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._check_held()
        except BaseException:
            work.close()
            raise
        self.stage = Stage.SETTLING
        await asyncio.shield(self.subscription.desk.begin(self._settling(work)))

    async def _settling(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it; what failed leaves the lease as it was."""
        try:
            await work
        except LeaseLostError:
            self.subscription.over(self)
            raise self._lost() from None
        except BaseException as error:
            if isinstance(error, QueueNotFoundError) and error.queue == self.subscription.name:
                self.subscription.over(self)  # its queue is gone: it takes up no room any more
            elif self.stage is Stage.SETTLING:
                self.stage = Stage.HELD
                self.subscription.unsettled(self)
            raise
        late = self.until <= self.subscription.desk.loop.time()
        self.subscription.over(self)
        if late:
            raise self._lost()

    async def _ack(self, parcels: Any) -> None:
        subscription = self.subscription
        if parcels:
            try:
                await subscription.desk.send(parcels, self.until)
            except PartialSendError as error:
                for failure in error.failed.values():
                    if isinstance(failure, ConnectionLostError):
                        raise again(failure) from error  # all of it may be tried again
                raise
        await subscription.desk.delete(subscription.place, self.received.handle, self.until)

    async def _again(self, delay: float, *, counted: bool) -> None:
        """Have it come again in `delay` seconds."""
        subscription, received = self.subscription, self.received
        desk, place = subscription.desk, subscription.place
        if not place.fifo and received.repeatable:
            history = {"attempts": received.attempts - (not counted), "lost": received.lost}
            if subscription.retention is not None and not delay:
                history["since"] = received.text.head.since or received.sent + received.text.head.delay
            try:
                await desk.send([desk.parcel(place, repeat(received, **history), delay)], self.until)
            except MessageTooLargeError:  # it has no room for its history
                await desk.change(place, received.handle, min(delay, desk.address.longest_hold), self.until)
                return
            await desk.delete(place, received.handle, self.until)
            return
        subscription.behind(self)  # before it is there again itself, which must not go back with them
        await desk.change(place, received.handle, delay, self.until)

    async def _extend(self, seconds: float) -> None:
        subscription = self.subscription
        now, before = subscription.desk.loop.time(), self.until
        until = min(now + seconds, self.arrived + subscription.desk.address.longest_hold)
        if until <= now:
            raise self._lost()
        self.until = min(before, until)
        try:
            await subscription.desk.change(subscription.place, self.received.handle, until - now, before)
        except LeaseLostError:
            subscription.over(self)
            raise self._lost() from None
        except OnCueError as error:
            if not isinstance(error, ConnectionLostError):
                self.until = before
            raise
        if self.stage in {Stage.HELD, Stage.SETTLING}:
            self.until = until
            subscription.watch(until)

    async def _give_back(self, delay: float) -> None:
        try:
            if not self.until <= self.subscription.desk.loop.time():
                await self._again(delay, counted=False)
        except OnCueError as error:
            self.subscription.not_given_back(error)
        finally:
            self.subscription.over(self)

    async def _drop(self) -> None:
        try:
            await self.subscription.desk.delete(self.subscription.place, self.received.handle, self.until)
        except OnCueError as error:
            self.subscription.not_given_back(error)
        finally:
            self.subscription.over(self)

    def _check_held(self) -> None:
        self.subscription.check_open()
        if self.stage is not Stage.HELD or self.until <= self.subscription.desk.loop.time():
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(self.subscription.name, self.message.id)
