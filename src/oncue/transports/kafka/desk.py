"""The parts of one transport, and the one producer that everything is sent by."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import errors as theirs

from oncue.core.errors import (
    MessageTooLargeError,
    PartialSendError,
    QueueNotFoundError,
    TransportError,
    again,
)
from oncue.core.message import Send, check_delay
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.kafka.address import Address
from oncue.transports.kafka.cluster import Cluster
from oncue.transports.kafka.codec import MAX_BODY, Parcel, check, encode
from oncue.transports.kafka.delays import LEVELS, TOPIC, Delays, level_of
from oncue.transports.kafka.publisher import Posted, Publisher
from oncue.transports.kafka.registry import TOPIC as REGISTRY
from oncue.transports.kafka.registry import Record, Registry
from oncue.transports.kafka.registry import encode as encode_record

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
        self._publisher = Publisher(address)
        self._turn = itertools.count()
        self._partitions: dict[str, int] = {}
        self._counting = asyncio.Lock()
        self._sending: set[asyncio.Task[None]] = set()
        self._delaying = False
        self.closed = False

    async def start(self) -> None:
        await self.cluster.start()
        await self._publisher.start()
        await self.registry.start()

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        self.closed = True
        while self._sending:
            await asyncio.wait(list(self._sending))
        await self.delays.close()
        await self.registry.close()
        await self._publisher.close()
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
        if known is not None:
            return known
        async with self._counting:  # of many who ask at the same time one asks the servers
            if record.topic not in self._partitions:
                known = (await self.cluster.topics(record.topic)).get(record.topic)
                if known is None:
                    raise QueueNotFoundError(record.spec.name)
                self._partitions[record.topic] = known
            return self._partitions[record.topic]

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
        await self.stored(await self._publisher.post(REGISTRY, 0, Parcel(queue.encode(), [], value), queue))
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
                record = self.registry.records.get(send.queue) or await self.find(send.queue)
                await self.partitions(record)
                records[send.queue] = record
            if send.delay:
                await self._make_delays()
        posted: list[Posted] = []
        for send in sends:  # one after the other, so that they are stored in this order
            record = records[send.queue]
            due = time.time() + send.delay if send.delay else 0.0
            if send.delay and not record.spec.fifo:
                posted.append(await self.postpone(record, send, due))
            else:
                posted.append(await self.put(record, encode(send.message, due=due)))
        failed = await self._publisher.outcome(posted)
        if not failed:
            return
        ours = {place: self._fault(posted[place], error) for place, error in failed.items()}
        if len(failed) == len(sends):
            raise again(ours[next(iter(ours))]) from failed[next(iter(failed))]
        raise PartialSendError(ours, len(sends))

    async def stored(self, *posted: Posted) -> None:
        """Return when all of these are, or raise why one is not."""
        for place, error in (await self._publisher.outcome(posted)).items():
            raise self._fault(posted[place], error) from error

    async def put(self, record: Record, parcel: Parcel) -> Posted:
        """Have a message stored in its queue, with others of its key where it has one."""
        count = await self.partitions(record)
        if parcel.key is None:
            place = 0 if record.spec.fifo else next(self._turn) % count
        else:
            place = zlib.crc32(parcel.key) % count
        return await self._publisher.post(record.topic, place, parcel, record.spec.name)

    async def postpone(self, record: Record, send: Send, due: float, **state: Any) -> Posted:
        """Have a message stored where it waits until it is due (s since 1970)."""
        await self._make_delays()
        parcel = encode(send.message, queue=record.spec.name, incarnation=record.incarnation, due=due, **state)
        return await self.wait_on(parcel, due)

    async def _make_delays(self) -> None:
        if not self._delaying:
            await self.cluster.create(TOPIC, LEVELS)
            self._delaying = True
            self.delays.need()

    async def wait_on(self, parcel: Parcel, due: float) -> Posted:
        """Have it wait in the level that fits."""
        return await self._publisher.post(TOPIC, level_of(due - time.time()), parcel, "delayed messages")

    def _fault(self, posted: Posted, error: BaseException) -> TransportError:
        if isinstance(error, theirs.RecordTooLargeError | theirs.MessageSizeTooLargeError):
            return MessageTooLargeError(posted.queue, posted.size, MAX_BODY)
        if isinstance(error, theirs.UnknownTopicOrPartitionError) and posted.queue not in self.registry.records:
            return QueueNotFoundError(
                posted.queue
            )  # else a server has not heard of it yet, or soon all will of its end
        return self._publisher.fault(error)

    def _changed(self, name: str) -> None:
        topics = {record.topic for record in self.registry.records.values()}
        self._partitions = {topic: count for topic, count in self._partitions.items() if topic in topics}
        if name not in self.registry.records:
            self._publisher.forget(name)
        self._told(name)
