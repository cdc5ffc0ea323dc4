"""The parts of one transport, and the one producer that everything is sent by."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from aiokafka import TopicPartition
from aiokafka import errors as theirs

from oncue.core.errors import (
    ConnectionLostError,
    MessageTooLargeError,
    PartialSendError,
    QueueNotFoundError,
    TransportError,
    again,
)
from oncue.core.message import Message, Send, check_delay
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.kafka.address import Address
from oncue.transports.kafka.cluster import Cluster
from oncue.transports.kafka.codec import MAX_BODY, Parcel, Received, check, encode
from oncue.transports.kafka.delays import LEVELS, TOPIC, Delays, level_of
from oncue.transports.kafka.publisher import Letter, Publisher
from oncue.transports.kafka.registry import TOPIC as REGISTRY
from oncue.transports.kafka.registry import Record, Registry
from oncue.transports.kafka.registry import encode as encode_record

Known: TypeAlias = Mapping[str, tuple[Record, int]]
"""Of queues by name how they were declared, and how many partitions they have."""

_REGISTRY = TopicPartition(REGISTRY, 0)
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

    async def partitions(self, record: Record, *, anew: bool = False) -> int:
        """How many its topic has. Raise `QueueNotFoundError` where there is none."""
        if anew:
            self._partitions.pop(record.topic, None)
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
        await self._store(Letter(_REGISTRY, Parcel(queue.encode(), [], value), queue))
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
            except QueueNotFoundError:
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
        known = self._known(sends)
        if known is None:
            await self.do(self._send(sends))
        else:
            await self._store_all(sends, known)

    async def do(self, work: Any) -> None:
        """Have it done to its end, also when nobody waits for it any more."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def put(self, record: Record, parcel: Parcel) -> None:
        """Store a message in its queue."""
        await self._store(self._letter(record, await self.partitions(record), parcel))

    async def postpone(self, record: Record, message: Message, due: float, **state: Any) -> None:
        """Store a message where it waits until it is due (s since 1970)."""
        await self._make_delays()
        await self._store(_delayed(record.spec.name, record.incarnation, message, due, **state))

    async def wait_on(self, received: Received) -> None:
        """Store a message that waits in the level that fits by now."""
        message, state = received
        counts = {"attempts": state.attempts, "lost": state.lost}
        await self._store(_delayed(state.queue, state.incarnation, message, state.due, **counts))

    def _known(self, sends: Sequence[Send]) -> Known | None:
        """Where these go, if the servers need not be asked."""
        known = {}
        for send in sends:
            if send.queue not in known:
                record = self.registry.records.get(send.queue)
                if record is None or record.topic not in self._partitions:
                    return None
                known[send.queue] = record, self._partitions[record.topic]
            if send.delay and not self._delaying:
                return None
        return known

    async def _send(self, sends: Sequence[Send]) -> None:
        known = {}
        for queue in {send.queue: None for send in sends}:
            record = self.registry.records.get(queue) or await self.find(queue)
            known[queue] = record, await self.partitions(record)
        if any(send.delay for send in sends):
            await self._make_delays()
        await self._store_all(sends, known)

    async def _store_all(self, sends: Sequence[Send], known: Known) -> None:
        letters = []
        for send in sends:
            record, count = known[send.queue]
            due = time.time() + send.delay if send.delay else 0.0
            if send.delay and not record.spec.fifo:
                letters.append(_delayed(record.spec.name, record.incarnation, send.message, due))
            else:
                letters.append(self._letter(record, count, encode(send.message, due=due)))
        failed = await self._publisher.send(letters)
        if not failed:
            return
        ours = {number: await self._reason(letters[number], error) for number, error in failed.items()}
        if len(failed) == len(sends):
            raise again(ours[next(iter(ours))]) from failed[next(iter(failed))]
        raise PartialSendError(ours, len(sends))

    async def _store(self, letter: Letter) -> None:
        """Return when it is stored, or raise why it is not."""
        for error in (await self._publisher.send([letter])).values():
            raise await self._reason(letter, error) from error

    def _letter(self, record: Record, count: int, parcel: Parcel) -> Letter:
        """A message on its way to its queue, to where others of its key are if it has one."""
        if parcel.key is None:
            place = 0 if record.spec.fifo else next(self._turn) % count
        else:
            place = zlib.crc32(parcel.key) % count
        return Letter(TopicPartition(record.topic, place), parcel, record.spec.name)

    async def _make_delays(self) -> None:
        if not self._delaying:
            await self.cluster.create(TOPIC, LEVELS)
            self._delaying = True
            self.delays.need()

    async def _reason(self, letter: Letter, error: BaseException) -> TransportError:
        """Why it is not stored, as ours."""
        if isinstance(error, theirs.RecordTooLargeError | theirs.MessageSizeTooLargeError):
            return MessageTooLargeError(letter.queue, len(letter.parcel.body or b""), MAX_BODY)
        topic = letter.place.topic
        if isinstance(error, theirs.UnknownTopicOrPartitionError | ConnectionLostError) and topic in self._partitions:
            with suppress(TransportError):  # it may be gone, or have other partitions by now
                del self._partitions[topic]
                if not await self.cluster.topics(topic):
                    return QueueNotFoundError(letter.queue)
        if isinstance(error, theirs.UnknownTopicOrPartitionError) and letter.queue not in self.registry.records:
            return QueueNotFoundError(
                letter.queue
            )  # else a server has not heard of it yet, or all soon will of its end
        return self._publisher.fault(error)

    def _changed(self, name: str) -> None:
        topics = {record.topic for record in self.registry.records.values()}
        self._partitions = {topic: count for topic, count in self._partitions.items() if topic in topics}
        if name not in self.registry.records:
            self._publisher.forget(name)
        self._told(name)


def _delayed(queue: str, incarnation: str, message: Message, due: float, **state: Any) -> Letter:
    """A message on its way to where it waits until it is due."""
    parcel = encode(message, queue=queue, incarnation=incarnation, due=due, **state)
    return Letter(TopicPartition(TOPIC, level_of(due - time.time())), parcel, "delayed messages")
