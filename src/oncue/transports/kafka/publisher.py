"""Sends records. The client's producer is idempotent and tries for ever; here each send has an end.

What is not stored in time is given up together with the producer that has it: a new one begins anew, with an id of its own, so
that neither what is given up nor what a server refused leaves a gap in the numbers that servers count by.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka import errors as theirs

from oncue.core.errors import ConnectionLostError, TransportClosedError, TransportError
from oncue.transports.kafka import private
from oncue.transports.kafka.address import Address
from oncue.transports.kafka.codec import MAX_RECORD, Parcel
from oncue.transports.kafka.faults import TROUBLE, fault

_BATCH = 2**18
_AT_ONCE = 0.5


class Posted(NamedTuple):
    """A record on its way: for which queue, how large, what becomes of it, and who has it."""

    queue: str
    size: int
    stored: Future[Any]
    channel: Channel | None


class Channel(NamedTuple):
    """A producer, and whether it was given up."""

    producer: AIOKafkaProducer
    over: Future[None]


class Publisher:
    """One producer at a time, which is made when it is needed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._channel: Channel | None = None
        self._making = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        try:
            await self._live()
        except TROUBLE as error:
            raise fault(error, self._address.shown) from error

    async def close(self) -> None:
        """Give what is under way its time, and hang up."""
        self._closed = True
        async with self._making:
            self._retire(self._channel)
        while self._retired:
            await asyncio.wait(list(self._retired))

    def forget(self, topic: str) -> None:
        """It is gone."""
        if self._channel is not None:
            private.forget(self._channel.producer, topic)

    async def post(self, topic: str, partition: int, parcel: Parcel, queue: str) -> Posted:
        """Have it sent, after what was posted before. `outcome` tells what becomes of it."""
        channel = self._channel
        try:
            if channel is None:
                channel = await self._live()
            stored = await channel.producer.send(topic, parcel.body, parcel.key, partition, headers=parcel.headers)
        except AssertionError as error:  # the topic was made anew, with fewer partitions
            stored = _failed(theirs.UnknownTopicOrPartitionError(str(error)))
        except TROUBLE as error:
            stored = _failed(error)
        return Posted(queue, len(parcel.body or b""), stored, channel)

    async def outcome(self, posted: Sequence[Posted]) -> Mapping[int, BaseException]:
        """Return when all are stored or given up; by their place those that are not stored, with the client's errors or ours."""
        failures: dict[int, BaseException] = {}
        try:
            async with asyncio.timeout(self._address.timeout):
                for each in posted:
                    if not each.stored.done() and each.channel is not None and not each.channel.over.done():
                        await asyncio.wait([each.stored, each.channel.over], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            for channel in {each.channel for each in posted if not each.stored.done()}:
                self._retire(channel, _AT_ONCE)
        for place, each in enumerate(posted):
            if not each.stored.done():
                failures[place] = ConnectionLostError(f"{self._address.shown}: not stored in time")
            elif (error := each.stored.exception()) is not None:
                failures[place] = error
                self._retire(each.channel)  # the server waits for a number that it will never get
        return failures

    def fault(self, error: BaseException) -> TransportError:
        """What became of a record, as ours."""
        if isinstance(error, theirs.ProducerClosed):
            return TransportClosedError() if self._closed else ConnectionLostError(f"{self._address.shown}: try again")
        return fault(error, self._address.shown)

    async def _live(self) -> Channel:
        async with self._making:
            if self._closed:
                raise theirs.ProducerClosed
            if self._channel is None:
                producer = await self._made()
                self._channel = Channel(producer, asyncio.get_running_loop().create_future())
            return self._channel

    async def _made(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._address.client(),
            enable_idempotence=True,
            acks="all",
            max_batch_size=_BATCH,
            max_request_size=2 * MAX_RECORD,
        )
        try:
            async with asyncio.timeout(self._address.timeout):
                await producer.start()
        except BaseException:
            await private.stop(producer, _AT_ONCE)
            raise
        return producer

    def _retire(self, channel: Channel | None, within: float | None = None) -> None:
        """Send no more by it; what it has may be stored for so long, and is given up then."""
        if channel is not None and self._channel is channel:
            self._channel = None
            task = asyncio.ensure_future(self._end(channel, self._address.timeout if within is None else within))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def _end(self, channel: Channel, within: float) -> None:
        await private.stop(channel.producer, within)
        channel.over.set_result(None)


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
