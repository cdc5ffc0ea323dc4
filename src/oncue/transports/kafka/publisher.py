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
    producer: AIOKafkaProducer | None


class Publisher:
    """One producer at a time, which is made when it is needed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._producer: AIOKafkaProducer | None = None
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
            self._retire(self._producer)
        while self._retired:
            await asyncio.wait(list(self._retired))

    def forget(self, topic: str) -> None:
        """It is gone."""
        if self._producer is not None:
            private.forget(self._producer, topic)

    async def post(self, topic: str, partition: int, parcel: Parcel, queue: str) -> Posted:
        """Have it sent, after what was posted before. `outcome` tells what becomes of it."""
        producer = self._producer
        try:
            if producer is None:
                producer = await self._live()
            stored = await producer.send(topic, parcel.body, parcel.key, partition, headers=parcel.headers)
        except AssertionError as error:  # the topic was made anew, with fewer partitions
            stored = _failed(theirs.UnknownTopicOrPartitionError(str(error)))
        except TROUBLE as error:
            stored = _failed(error)
        return Posted(queue, len(parcel.body or b""), stored, producer)

    async def outcome(self, posted: Sequence[Posted]) -> Mapping[int, BaseException]:
        """Return when all are stored or given up; by their place those that are not stored, with the client's errors or ours."""
        failures: dict[int, BaseException] = {}
        late = False
        try:
            async with asyncio.timeout(self._address.timeout):
                for place, each in enumerate(posted):
                    try:
                        await each.stored
                    except Exception as error:
                        failures[place] = error
                        self._retire(each.producer)  # the server waits for a number that it will never get
        except TimeoutError:
            late = True
        if late:
            for place, each in enumerate(posted):
                if not each.stored.done() or each.stored.cancelled():
                    failures[place] = ConnectionLostError(f"{self._address.shown}: not stored in time")
                    self._retire(each.producer, _AT_ONCE)
                elif (late_error := each.stored.exception()) is not None:
                    failures[place] = late_error
        return failures

    def fault(self, error: BaseException) -> TransportError:
        """What became of a record, as ours."""
        if isinstance(error, theirs.ProducerClosed):
            return TransportClosedError() if self._closed else ConnectionLostError(f"{self._address.shown}: try again")
        return fault(error, self._address.shown)

    async def _live(self) -> AIOKafkaProducer:
        async with self._making:
            if self._closed:
                raise theirs.ProducerClosed
            if self._producer is None:
                self._producer = await self._made()
            return self._producer

    async def _made(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._address.client(),
            enable_idempotence=True,
            acks="all",
            max_batch_size=_BATCH,
            max_request_size=2 * MAX_RECORD,
        )
        try:
            await private.start(producer, self._address.timeout)
        except BaseException:
            await private.stop(producer, _AT_ONCE)
            raise
        return producer

    def _retire(self, producer: AIOKafkaProducer | None, within: float | None = None) -> None:
        """Send no more by it; what it has may be stored for so long, and is given up then."""
        if producer is not None and self._producer is producer:
            self._producer = None
            stopping = private.stop(producer, self._address.timeout if within is None else within)
            task = asyncio.ensure_future(stopping)
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
