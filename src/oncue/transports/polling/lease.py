"""A received message, and what becomes of it.

The time of a lease is kept here as well as by the service, and nothing is asked for once it is over. What is refused or released is
sent anew with the history that it is to have, and then deleted; in a FIFO queue, where that would change the order, it is handed
out again by the service, which counts that as an attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Generic

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
from oncue.transports.polling.lines import Parcel, send
from oncue.transports.polling.source import R
from oncue.transports.stages import SUSPECT, Stage

if TYPE_CHECKING:
    from oncue.transports.polling.subscription import PollingSubscription


class PollingLease(Generic[R]):
    """Its methods return when the service has done it; a cancelled one still takes effect."""

    __slots__ = (
        "arrived",
        "attempt",
        "kept",
        "message",
        "received",
        "source",
        "stage",
        "subscription",
        "suspect",
        "until",
    )

    def __init__(self, subscription: PollingSubscription[R], received: R, arrived: float) -> None:
        self.subscription = subscription
        self.source = subscription.source
        self.received = received
        self.message: Message = received.message
        self.attempt = received.attempts
        self.suspect = received.lost >= SUSPECT
        self.arrived = arrived
        self.until = arrived + self.source.terms.lease
        self.kept = arrived + self.source.terms.kept
        self.stage = Stage.WAITING

    # For those who hold it

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        parcels = await self.source.parcels(sends, self.received) if sends else ()
        await self._settle(self._ack(parcels))

    async def nack(self, *, delay: float = 0.0) -> None:
        check_fifo_delay(self.source.name, check_delay(delay), self.source.terms.longest_wait, fifo=self.source.fifo)
        await self._settle(self._again(delay, counted=True))

    async def release(self) -> None:
        await self._settle(self._again(0.0, counted=False))

    async def extend(self, seconds: float) -> None:
        longest = self.source.terms.longest_hold
        if not check_delay(seconds) > 0 or seconds > longest:
            most = f" and at most {longest:g}" if longest < float("inf") else ""
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0{most} seconds")
        self._check_held()
        await asyncio.shield(self.subscription.tasks.begin(self._extend(seconds)))

    # For its subscription

    def give_back(self, delay: float = 0.0) -> None:
        """Have it come again, uncounted where that can be. Does not wait."""
        self._return(self._again(delay, counted=False))

    def drop(self) -> None:
        """It is too old. Does not wait."""
        self._return(self.source.delete(self.received, self.until))

    async def keep(self) -> None:
        """Have the service keep it for as long as the lease lasts, or for as long as it does at a time."""
        now = self.subscription.tasks.loop.time()
        try:
            self.kept = now + await self.source.keep(self.received, self.until - now, self.until)
        except OnCueError as error:
            if self._is_lost(error):
                self.subscription.over(self)
            else:
                self.subscription.not_kept(self, error)

    # Inside

    async def _settle(self, work: Coroutine[object, object, None]) -> None:
        try:
            self._check_held()
        except BaseException:
            work.close()
            raise
        self.stage = Stage.SETTLING
        await asyncio.shield(self.subscription.tasks.begin(self._settling(work)))

    async def _settling(self, work: Coroutine[object, object, None]) -> None:
        """Do it; what failed leaves the lease as it was."""
        try:
            await work
        except BaseException as error:
            if self._is_lost(error):
                self.subscription.over(self)
                raise self._lost() from None
            if self.stage is Stage.SETTLING:
                self.stage = Stage.HELD
                self.subscription.unsettled(self)
            raise
        self.subscription.over(self)

    async def _ack(self, parcels: Sequence[Parcel]) -> None:
        if parcels:
            try:
                await send(parcels, self.until)
            except PartialSendError as error:
                for failure in error.failed.values():
                    if isinstance(failure, ConnectionLostError):
                        raise again(failure) from error  # all of it may be tried again
                raise
        await self.source.delete(self.received, self.until)

    async def _again(self, delay: float, *, counted: bool) -> None:
        """Have it come again in `delay` seconds."""
        source, received = self.source, self.received
        try:
            parcel = source.anew(received, received.attempts - (not counted), delay)
            if parcel is not None:
                await send([parcel], self.until)
        except MessageTooLargeError:  # it has no room for its history
            parcel = None
        if parcel is not None:
            await source.delete(received, self.until)
        else:
            if self.stage is Stage.SETTLING:
                self.subscription.behind(self)  # before it is there again itself, which must not go back with them
            await source.put_off(received, delay, self.until)

    async def _extend(self, seconds: float) -> None:
        now, before = self.subscription.tasks.loop.time(), self.until
        until = min(now + seconds, self.arrived + self.source.terms.longest_hold)
        if until <= now:
            raise self._lost()
        self.until = min(before, until)
        try:
            kept = await self.source.keep(self.received, until - now, before)
        except OnCueError as error:
            if self._is_lost(error):
                self.subscription.over(self)
                raise self._lost() from None
            if not isinstance(error, ConnectionLostError):
                self.until = before
            raise
        if self.stage in {Stage.HELD, Stage.SETTLING}:
            self.until, self.kept = until, now + kept
            self.subscription.watch(self)

    def _return(self, work: Coroutine[object, object, None]) -> None:
        self.stage = Stage.RETURNING
        self.subscription.tasks.begin(self._returning(work))

    async def _returning(self, work: Coroutine[object, object, None]) -> None:
        try:
            if self.until <= self.subscription.tasks.loop.time():
                work.close()
            else:
                await work
        except OnCueError as error:
            if not self._is_lost(error):
                self.subscription.not_given_back(error)
        finally:
            self.subscription.over(self)

    def _is_lost(self, error: BaseException) -> bool:
        """Whether somebody else has the message now, or nobody, because its queue is gone."""
        if isinstance(error, QueueNotFoundError):
            return error.queue == self.source.name
        return isinstance(error, LeaseLostError)

    def _check_held(self) -> None:
        self.subscription.check_open()
        if self.stage is not Stage.HELD or self.until <= self.subscription.tasks.loop.time():
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(self.source.name, self.message.id)


def check_fifo_delay(queue: str, delay: float, longest: float, *, fifo: bool) -> None:
    """Raise `InvalidValueError` for a delay that a FIFO queue cannot keep: its messages wait where they are."""
    if fifo and delay > longest:
        raise InvalidValueError(
            f"queue {queue!r}: a FIFO queue delays a message by {longest:g} s at most, not {delay:g} s"
        )
