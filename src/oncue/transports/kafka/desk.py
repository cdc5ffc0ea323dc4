"""The parts of one transport, and the one producer that everything is sent by."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as theirs

from oncue.core.errors import (
    MessageTooLargeError,
    PartialSendError,
    QueueNotFoundError,
    TransportClosedError,
    again,
)
from oncue.core.message import Send, check_delay
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.kafka.address import Address
from oncue.transports.kafka.cluster import Cluster
from oncue.transports.kafka.codec import MAX_BODY, MAX_RECORD, Parcel, check, encode
from oncue.transports.kafka.delays import LEVELS, TOPIC, Delays, level_of
from oncue.transports.kafka.faults import TROUBLE, fault
from oncue.transports.kafka.registry import TOPIC as REGISTRY
from oncue.transports.kafka.registry import Record, Registry
from oncue.transports.kafka.registry import encode as encode_record

_BATCH = 2**18
_PAUSE = 0.02
_UNRECORDED = 3.0
"""Seconds that somebody who made a topic may take to say what for."""


class Desk:
    """One for each transport."""

    def __init__(self, address: Address, changed: Callable[[str], None]) -> None:
        self.address = address
        self.cluster = Cluster(address)
        self.registry = Registry(self.cluster, self._changed)
        self.delays = Delays(self)
        self._told = changed
        self._producer = AIOKafkaProducer(
            **address.client(),
            enable_idempotence=True,
            acks="all",
            max_batch_size=_BATCH,
            max_request_size=2 * MAX_RECORD,
        )
        self._turn = itertools.count()
        self._partitions: dict[str, int] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._delaying = False
        self.closed = False

    async def start(self) -> None:
        await self.cluster.start()
        try:
            await self._producer.start()
        except TROUBLE as error:
            raise fault(error, self.address.shown) from error
        await self.registry.start()

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        self.closed = True
        while self._sending:
            await asyncio.wait(list(self._sending))
        await self.delays.close()
        await self.registry.close()
        with suppress(*TROUBLE):
            await self._producer.stop()
        await self.cluster.close()

    # Queues

    def group(self, queue: str) -> str:
        return f"{self.address.group}.{queue}"

    async def find(self, queue: str) -> Record:
        """The queue, also one that is a topic which was made without us. Raise `QueueNotFoundError`."""
        await self.registry.sync()
        return await self._record(queue)

    async def partitions(self, record: Record) -> int:
        known = self._partitions.get(record.topic)
        if known is None:
            known = (await self.cluster.topics(record.topic)).get(record.topic)
            if known is None:
                raise QueueNotFoundError(record.spec.name)
            self._partitions[record.topic] = known
        return known

    async def declare(self, spec: QueueSpec, incarnation: str) -> None:
        topic, made = await self._make(spec.name)
        until = time.monotonic() + _UNRECORDED
        if made:
            await self._until_ready(topic)
        while not made and time.monotonic() < until:
            await self.registry.sync()
            if spec.name in self.registry.records:
                check_equal(self.registry.records[spec.name].spec, spec)
                return
            await asyncio.sleep(_PAUSE)
        await self.write(spec.name, Record(spec, topic, incarnation if made else "", made))

    async def write(self, queue: str, record: Record | None) -> None:
        """Have everybody know."""
        value = None if record is None else encode_record(record)
        await (await self._post(REGISTRY, 0, Parcel(queue.encode(), [], value), queue))  # type: ignore[arg-type]
        await self.registry.sync()

    async def _make(self, queue: str) -> tuple[str, bool]:
        if queue not in await self.cluster.topics():
            try:
                return queue, await self.cluster.create(queue, self.address.partitions)
            except theirs.InvalidTopicError:  # 'a.b' and 'a_b' are one to Kafka
                topic = f"{queue}-{zlib.crc32(queue.encode()):08x}"
                return topic, await self.cluster.create(topic, self.address.partitions)
        return queue, False

    async def _until_ready(self, topic: str) -> None:
        """Return when each partition of a new topic has a server that knows of it."""
        until = time.monotonic() + self.address.timeout
        while True:
            try:
                await self.cluster.ends(topic, range(self.address.partitions))
            except (QueueNotFoundError, KeyError):
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def _record(self, queue: str) -> Record:
        record = self.registry.records.get(queue)
        if record is not None:
            return record
        if queue in {TOPIC, REGISTRY} or not await self.cluster.topics(queue):
            raise QueueNotFoundError(queue)
        return Record(QueueSpec(name=queue), queue)

    # Messages

    async def send(self, sends: Sequence[Send]) -> None:
        """Store all; raise what the contract says. One that is cancelled goes on."""
        for send in sends:
            check(send)
            check_delay(send.delay)
        await self.do(self._send(sends))

    async def do(self, work: Any) -> None:
        """Have it done to its end, also when nobody waits for it any more."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _send(self, sends: Sequence[Send]) -> None:
        records: dict[str, Record] = {}
        for send in sends:
            if send.queue not in records:
                records[send.queue] = self.registry.records.get(send.queue) or await self.find(send.queue)
        futures: list[Any] = []
        for send in sends:  # one after the other, so that they are stored in this order
            record = records[send.queue]
            due = time.time() + send.delay if send.delay else 0.0
            if send.delay and not record.spec.fifo:
                futures.append(await self.postpone(record, send, due))
            else:
                futures.append(await self.put(record, encode(send.message, due=due)))
        results = await asyncio.gather(*futures, return_exceptions=True)
        failed = {place: each for place, each in enumerate(results) if isinstance(each, BaseException)}
        if not failed:
            return
        ours = {place: fault(each, self.address.shown) for place, each in failed.items()}
        if len(failed) == len(sends):
            raise again(ours[next(iter(ours))]) from failed[next(iter(failed))]
        raise PartialSendError(ours, len(sends))

    async def put(self, record: Record, parcel: Parcel) -> Awaitable[None]:
        """Store a message in its queue, with others of its key where it has one. What is returned is to be awaited too."""
        count = await self.partitions(record)
        if parcel.key is None:
            place = 0 if record.spec.fifo else next(self._turn) % count
        else:
            place = zlib.crc32(parcel.key) % count
        return await self._post(record.topic, place, parcel, record.spec.name)

    async def postpone(self, record: Record, send: Send, due: float, **state: Any) -> Awaitable[None]:
        """Store a message where it waits until it is due (s since 1970). What is returned is to be awaited too."""
        if not self._delaying:
            await self.cluster.create(TOPIC, LEVELS)
            self._delaying = True
            self.delays.need()
        parcel = encode(send.message, queue=record.spec.name, incarnation=record.incarnation, due=due, **state)
        return await self.wait_on(parcel, due)

    async def wait_on(self, parcel: Parcel, due: float) -> Awaitable[None]:
        """Have it wait in the level that fits. What is returned is to be awaited too."""
        return await self._post(TOPIC, level_of(due - time.time()), parcel, "delayed messages")

    async def _post(self, topic: str, partition: int, parcel: Parcel, queue: str) -> Awaitable[None]:
        try:
            future = await self._producer.send(topic, parcel.body, parcel.key, partition, headers=list(parcel.headers))
        except TROUBLE as error:
            return self._stored(failed(error), parcel, queue)
        return self._stored(future, parcel, queue)

    async def _stored(self, future: Awaitable[Any], parcel: Parcel, queue: str) -> None:
        try:
            await future
        except (theirs.RecordTooLargeError, theirs.MessageSizeTooLargeError) as error:
            raise MessageTooLargeError(queue, len(parcel.body), MAX_BODY) from error
        except theirs.ProducerClosed as error:
            raise TransportClosedError from error
        except theirs.UnknownTopicOrPartitionError as error:
            if queue in self.registry.records:  # a server has not heard of it yet, or soon everybody will of its end
                raise fault(error, self.address.shown) from error
            raise QueueNotFoundError(queue) from error
        except TROUBLE as error:
            raise fault(error, self.address.shown) from error

    def _changed(self, name: str) -> None:
        topics = {record.topic for record in self.registry.records.values()}
        self._partitions = {topic: count for topic, count in self._partitions.items() if topic in topics}
        if name not in self.registry.records:  # or the client would ask for it until a server makes it anew
            self._producer.client._topics.discard(name)  # noqa: SLF001
        self._told(name)


def failed(error: Exception) -> Future[None]:
    """One that is done already, and has failed."""
    future: Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
