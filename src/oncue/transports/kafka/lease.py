"""A received message, and what becomes of it. Its time is kept here; whose it is says the group, which fences late commits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from oncue.core.errors import (
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    PartialSendError,
    again,
)
from oncue.core.message import Message, Send, check_delay
from oncue.transports.kafka.ledger import Entry, Stage

if TYPE_CHECKING:
    from oncue.transports.kafka.member import Member
    from oncue.transports.kafka.subscription import KafkaSubscription


class KafkaLease:
    """Its methods return when it is committed; a cancelled one may still take effect."""

    __slots__ = ("attempt", "entry", "member", "message", "sent", "subscription", "suspect", "until")

    def __init__(self, member: Member, subscription: KafkaSubscription, entry: Entry, until: float) -> None:
        assert entry.received is not None
        self.member = member
        self.subscription = subscription
        self.entry = entry
        self.message: Message = entry.received.message
        self.attempt = entry.attempts
        self.suspect = entry.suspect
        self.until = until
        self.sent: Sequence[Send] = ()

    async def ack(self, *sends: Send) -> None:
        self._check_held()
        if sends and sends != self.sent:
            desk = self.member.desk
            self.entry.stage = Stage.SETTLING
            try:
                await desk.send(sends)
            except PartialSendError as error:
                for failure in error.failed.values():
                    if isinstance(failure, ConnectionLostError):
                        raise again(failure) from error  # all of it may be tried again
                raise
            finally:
                self._resume()
            if self.entry.lease is not self:
                raise self._lost()
            self.sent = sends  # if only the rest fails, they are not sent again
        await self.member.finish(self)

    async def nack(self, *, delay: float = 0.0) -> None:
        check_delay(delay)
        self._check_held()
        member, entry = self.member, self.entry
        if delay and not member.record.spec.fifo:
            entry.stage = Stage.SETTLING
            counts = {"attempts": entry.attempts, "lost": entry.lost}
            try:
                await member.desk.do(member.desk.postpone(member.record, self.message, time.time() + delay, **counts))
            finally:
                self._resume()
            if entry.lease is not self:
                raise self._lost()
            await member.finish(self)
            return
        entry.due = time.time() + delay if delay else 0.0
        await member.give_back(self, front=False)

    async def release(self) -> None:
        self._check_held()
        self.entry.attempts -= 1
        await self.member.give_back(self, front=True)

    async def extend(self, seconds: float) -> None:
        if not check_delay(seconds) > 0:
            raise InvalidValueError(f"extend by {seconds!r}: expected more than 0 seconds")
        self._check_held()
        self.until = self.member.loop.time() + seconds
        self.member.watch(self.until)

    def _resume(self) -> None:
        if self.entry.lease is self and self.entry.stage is Stage.SETTLING:
            self.entry.stage = Stage.HELD
            self.member.watch(min(self.until, math.inf))

    def _check_held(self) -> None:
        self.subscription.check_open()
        if self.entry.lease is not self or self.entry.stage is not Stage.HELD:
            raise self._lost()
        if self.until <= self.member.loop.time():
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(self.member.record.spec.name, self.message.id)
