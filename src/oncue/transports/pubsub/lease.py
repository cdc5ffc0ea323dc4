"""A received message, and what becomes of it.

Pub/Sub settles each message for its latest receiver only and says so, and the time of a lease is kept here as well, so nothing is
asked for once it is over. What is refused or released is sent anew with the history that it is to have, and then acknowledged;
in a FIFO queue, where that would change the order, its deadline is made short instead, which the service counts as an attempt.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
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
from oncue.transports.pubsub.codec import Received
from oncue.transports.pubsub.desk import Parcel, check_fifo_delay
from oncue.transports.pubsub.queues import held

if TYPE_CHECKING:
    from oncue.transports.pubsub.subscription import PubSubSubscription

SUSPECT = 2
"""A message that was lost so often with whoever held it may be what ends its consumers."""
_AT_ONCE = 1
"""Seconds after which a message of a FIFO queue is shown again. The emulator keeps the order of those whose deadline is over,
and not of those that are given back."""


class Stage(IntEnum):
    WAITING = 0  # nobody has received it yet
    HELD = 1
    SETTLING = 2
    RETURNING = 3  # it goes back unseen
    OVER = 4


class PubSubLease:
    """Its methods return when the service has done it; a cancelled one still takes effect."""

    __slots__ = ("arrived", "attempt", "kept", "message", "received", "stage", "subscription", "suspect", "until")

    def __init__(self, subscription: PubSubSubscription, received: Received, arrived: float) -> None:
        self.subscription = subscription
        self.received = received
        self.message: Message = received.message
        delayed = subscription.place.fifo and received.text.head.delay > 0  # it was delivered once before it was due
        self.attempt = max(1, received.attempts - delayed)
        self.suspect = received.lost - delayed >= SUSPECT
        self.arrived = arrived
        self.until = arrived + subscription.lease
        self.kept = arrived + subscription.deadline
        self.stage = Stage.WAITING

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        parcels = await self.subscription.desk.parcels(sends) if sends else ()
        await self._settle(self._ack(parcels))

    async def nack(self, *, delay: float = 0.0) -> None:
        check_fifo_delay(self.subscription.place, check_delay(delay))
        await self._settle(self._again(delay, counted=True))

    async def release(self) -> None:
        await self._settle(self._again(0.0, counted=False))

    async def extend(self, seconds: float) -> None:
        if not check_delay(seconds) > 0:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 seconds")
        self._check_held()
        await asyncio.shield(self.subscription.desk.begin(self._extend(seconds)))

    def give_back(self, delay: float = 0.0) -> None:
        """Have it come again, uncounted where that can be. Does not wait."""
        self.stage = Stage.RETURNING
        self.subscription.desk.begin(self._return(self._again(delay, counted=False)))

    def wait(self, delay: float) -> None:
        """It is not due yet: have it come again when it is. Does not wait."""
        self.stage = Stage.RETURNING
        self.subscription.desk.begin(self._return(self._change(max(1, math.ceil(delay)))))

    def drop(self) -> None:
        """It is too old. Does not wait."""
        self.stage = Stage.RETURNING
        self.subscription.desk.begin(self._return(self._delete()))

    async def keep(self) -> None:
        """Have the service hold it for as long as the lease lasts, or for as long as it does at a time."""
        subscription, now = self.subscription, self.subscription.desk.loop.time()
        seconds = held(self.until - now)
        try:
            await self._change(seconds)
        except LeaseLostError:
            subscription.over(self)
        except OnCueError as error:
            subscription.not_kept(self, error)
        else:
            self.kept = now + seconds

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
        except BaseException:
            if self.stage is Stage.SETTLING:
                self.stage = Stage.HELD
                self.subscription.unsettled(self)
            raise
        self.subscription.over(self)

    async def _ack(self, parcels: Sequence[Parcel]) -> None:
        if parcels:
            try:
                await self.subscription.desk.send(parcels, self.until)
            except PartialSendError as error:
                for failure in error.failed.values():
                    if isinstance(failure, ConnectionLostError):
                        raise again(failure) from error  # all of it may be tried again
                raise
        await self._delete()

    async def _again(self, delay: float, *, counted: bool) -> None:
        """Have it come again in `delay` seconds."""
        subscription, received = self.subscription, self.received
        desk, place = subscription.desk, subscription.place
        if place.fifo or (delay and place.later is None):
            await self._change(max(_AT_ONCE, math.ceil(delay)))
            subscription.behind(self)
            return
        history: dict[str, Any] = {"attempts": received.attempts - (not counted), "lost": received.lost, "delay": 0}
        if subscription.retention is not None:
            history["since"] = received.began
        try:
            parcel = desk.parcel(place, received.text.changed(**history), delay)
        except MessageTooLargeError:  # it has no room for its history
            await self._change(min(600, math.ceil(delay)))
            return
        await desk.send([parcel], self.until)
        await self._delete()

    async def _extend(self, seconds: float) -> None:
        subscription = self.subscription
        now, before, kept = subscription.desk.loop.time(), self.until, held(seconds)
        self.until = min(before, now + seconds)
        try:
            await self._change(kept, before)
        except LeaseLostError:
            subscription.over(self)
            raise self._lost() from None
        except OnCueError as error:
            if not isinstance(error, ConnectionLostError):
                self.until = before
            raise
        if self.stage in {Stage.HELD, Stage.SETTLING}:
            self.until, self.kept = now + seconds, now + kept
            subscription.watch(self)

    async def _return(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            if self.until <= self.subscription.desk.loop.time():
                work.close()
            else:
                await work
        except OnCueError as error:
            self.subscription.not_given_back(error)
        finally:
            self.subscription.over(self)

    async def _delete(self) -> None:
        desk, place = self.subscription.desk, self.subscription.place
        with self._of_a_queue_that_is_there():
            await desk.delete(place.name, place.subscription, self.received.handle, self.until)

    async def _change(self, seconds: int, until: float | None = None) -> None:
        desk, place = self.subscription.desk, self.subscription.place
        limit = self.until if until is None else until
        with self._of_a_queue_that_is_there():
            await desk.change(place.name, place.subscription, self.received.handle, seconds, limit)

    @contextmanager
    def _of_a_queue_that_is_there(self) -> Iterator[None]:
        """A lease in a queue that is gone is lost, and takes up no room."""
        try:
            yield
        except QueueNotFoundError:
            raise self._lost() from None

    def _check_held(self) -> None:
        self.subscription.check_open()
        if self.stage is not Stage.HELD or self.until <= self.subscription.desk.loop.time():
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(self.subscription.name, self.message.id)
