"""The channel that a subscription gets its messages by: never more at a time than it has room for, whatever changes."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from contextlib import suppress

from oncue.core.errors import ConnectionLostError, QueueNotFoundError, TransportError
from oncue.transports.rabbitmq.amqp import Channel, ChannelClosed, ClosedError, Delivery
from oncue.transports.rabbitmq.faults import fault
from oncue.transports.rabbitmq.link import Link

_MOST = 8
"""Consumers. Room is added by a further one, because the server tells none of new room that it has."""
_STILL = 0.05
"""Seconds in which the server hands out what there has just become room for."""


class Intake:
    """Takes up to `limit` messages that are not settled. With a limit of 0, and at first, it takes nothing.

    arrived: gets each message. ended: is told that the channel is over, and everything that came by it somebody else's.
    adjusted: is told that as many as there is room for are asked for.

    A message that is on its way to a consumer when that is cancelled goes back to the queue and is counted there as one that was
    lost. So consumers are cancelled when they have what they asked for, or nothing has come for a while, and meanwhile nothing is
    settled, which would give them room.
    """

    def __init__(
        self,
        link: Link,
        queue: str,
        arrived: Callable[[Delivery], None],
        adjusted: Callable[[], None],
        ended: Callable[[TransportError], None],
    ) -> None:
        self._link = link
        self._queue = queue
        self._arrived = arrived
        self._adjusted = adjusted
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._limit = 0
        self._channel: Channel | None = None
        self._consumers: dict[str, int] = {}
        self._unsettled: dict[int, str] = {}
        self._orphans: set[int] = set()  # unsettled ones of consumers that are no more
        self._disowned: set[int] = set()
        self._taken = 0  # unsettled ones of consumers that are there
        self._lacking = False
        self._acks: set[int] = set()
        self._nacks: list[int] = []
        self._holding = False
        self._asked = 0  # how much the consumer is for that is being made
        self._stirred = 0.0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def adjusting(self) -> bool:
        """Whether consumers are being added or cancelled."""
        return self._task is not None

    def aim(self, limit: int) -> None:
        """Take as many from now on; what came before stays."""
        self._limit = limit
        self._adjust_soon()

    def ack(self, tag: int) -> None:
        """Settle a message, at the end of this turn of the loop."""
        consumer = self._unsettled.pop(tag, None)
        if consumer is not None:
            self._acks.add(tag)
            self._write_soon()
            self._gone(tag, consumer)

    def requeue(self, tag: int) -> None:
        """Give a message back to the queue, which counts it."""
        if tag in self._unsettled:
            self._nacks.append(tag)
            self._write_soon()

    def disown(self, tag: int) -> None:
        """A message is on its way back, and takes up no room that others may be asked for."""
        self._disowned.add(tag)
        self._orphans.discard(tag)

    async def stop(self) -> None:
        """Take nothing more; when this returns nothing more comes. What came can still be settled."""
        self.aim(0)
        while self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Settle what was asked for and leave the channel. What is not settled goes back."""
        await self.stop()
        self._write()
        channel, self._channel = self._channel, None
        self._forget()
        if channel is not None:
            await channel.close()

    # Inside

    def _gone(self, tag: int, consumer: str) -> None:
        self._disowned.discard(tag)
        if consumer in self._consumers:
            self._taken -= 1
        elif tag in self._orphans:
            self._orphans.discard(tag)
            self._adjust_soon()

    def _write_soon(self) -> None:
        if len(self._acks) + len(self._nacks) == 1 and not self._holding:
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        """One frame for all up to the first that is still in work, and one for each after it."""
        channel = self._channel
        if channel is None or self._holding or not (self._acks or self._nacks):
            return
        acks, self._acks = self._acks, set()
        nacks, self._nacks = self._nacks, []
        self._stirred = self._loop.time()
        try:
            first = next(iter(self._unsettled), None)  # those that are to go back are still among them
            before = [tag for tag in acks if first is None or tag < first]
            if before:
                channel.ack(max(before), multiple=len(before) > 1)
            for tag in sorted(acks.difference(before)):
                channel.ack(tag)
            for tag in nacks:
                channel.nack(tag)
        except ClosedError:
            return  # of the end of the channel all are told
        for tag in nacks:
            self._gone(tag, self._unsettled.pop(tag))

    def _begun(self, consumer: str) -> None:
        """It is there: the answer that says so, or its first message, whichever is seen first."""
        if self._asked and consumer not in self._consumers:
            self._consumers[consumer] = self._asked
            self._asked = 0

    def _deliver(self, delivery: Delivery) -> None:
        self._begun(delivery.consumer_tag)
        self._unsettled[delivery.tag] = delivery.consumer_tag
        self._taken += 1
        self._stirred = self._loop.time()
        self._news.set()
        if self._lacking:
            self._adjust_soon()
        self._arrived(delivery)

    def _adjust_soon(self) -> None:
        if self._task is None and self._step() is not None:
            self._task = self._loop.create_task(self._adjust())

    def _step(self) -> int | None:
        """What to do next: take so many more, or with 0 no more from any consumer; None when all is as it should be."""
        asked = sum(self._consumers.values())
        lacking = self._limit - asked - len(self._orphans)
        if lacking < 0:
            return 0 if self._consumers else None
        # A consumer for each single one that is lacking would be many, so as long as there is room they can wait.
        few = 1 if self._taken >= asked else max(1, self._limit // 4)
        self._lacking = 0 < lacking < few
        if lacking < few:
            return None
        return lacking if len(self._consumers) < _MOST else 0

    async def _adjust(self) -> None:
        try:
            while (step := self._step()) is not None:
                channel = self._channel or await self._open()
                if step:
                    self._asked = step
                    tag = await channel.consume(self._queue, self._deliver, self._cancelled, prefetch=step)
                    if self._channel is channel:
                        self._begun(tag)
                    continue
                self._holding = True
                await self._wait_until_still()
                for tag in list(self._consumers):
                    await channel.cancel(tag)
                if self._channel is channel:
                    self._consumers.clear()
                    self._taken = 0
                    self._orphans = self._unsettled.keys() - self._disowned
                    self._holding = False
                    self._write()
        except (ClosedError, TransportError) as error:
            self._end(fault(error, self._link.address.shown))
        except Exception as error:  # a fault of ours must leave nobody waiting
            self._end(ConnectionLostError(f"{self._link.address.shown}: {error!r}"))
            raise
        finally:
            self._task = None
        self._adjusted()

    async def _wait_until_still(self) -> None:
        """Return when the consumers have all that they asked for, or nothing has happened for a while."""
        asked = sum(self._consumers.values())
        while self._taken + len(self._acks) < asked:
            left = self._stirred + _STILL - self._loop.time()
            if left <= 0 or self._channel is None:
                return
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    async def _open(self) -> Channel:
        connection = await self._link.connection()
        self._channel = channel = await connection.channel()
        channel.closed.add_done_callback(lambda closed: self._over(channel, closed))
        return channel

    def _over(self, channel: Channel, closed: Future[ChannelClosed]) -> None:
        if self._channel is channel:
            self._end(fault(closed.result(), self._link.address.shown))

    def _cancelled(self, _tag: str) -> None:
        self._end(QueueNotFoundError(self._queue))

    def _end(self, error: TransportError) -> None:
        channel, self._channel = self._channel, None
        self._limit = 0
        self._news.set()
        self._forget()
        if channel is not None:
            channel.leave()
        self._ended(error)

    def _forget(self) -> None:
        self._consumers.clear()
        self._unsettled.clear()
        self._acks.clear()
        self._nacks.clear()
        self._holding = False
        self._asked = self._taken = 0
        self._lacking = False
        self._orphans.clear()
        self._disowned.clear()
