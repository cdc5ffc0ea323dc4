"""What queues there are and how they were declared, in a compacted topic that all processes read and write."""

from __future__ import annotations

import asyncio
from asyncio import Condition
from collections.abc import Callable, Mapping

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from oncue.core.errors import ConnectionLostError, IncompatibleStoreError
from oncue.transports.base import QueueSpec
from oncue.transports.kafka import private
from oncue.transports.kafka.cluster import Cluster
from oncue.transports.kafka.faults import TROUBLE, fault

TOPIC = "oncue.queues"
_PLACE = TopicPartition(TOPIC, 0)


class Record(msgspec.Struct, frozen=True):
    """A queue: how it was declared, in which topic it is, and of which making.

    made: whether we made the topic, so that what is done in it may be deleted.
    floors: what is below these offsets was purged.
    """

    spec: QueueSpec
    topic: str
    incarnation: str = ""
    made: bool = False
    floors: Mapping[int, int] = {}


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class Registry:
    """A view of the topic that follows it."""

    def __init__(self, cluster: Cluster, changed: Callable[[str], None]) -> None:
        self.records: dict[str, Record] = {}
        self._cluster = cluster
        self._changed = changed
        self._consumer: AIOKafkaConsumer | None = None
        self._follower: asyncio.Task[None] | None = None
        self._position = 0
        self._news = Condition()
        self._looking = asyncio.Lock()
        self._asked = self._seen = 0
        self._fault: IncompatibleStoreError | None = None

    async def start(self) -> None:
        if TOPIC not in await self._cluster.topics(TOPIC):
            await self._cluster.create(TOPIC, 1, {"cleanup.policy": "compact"})
        self._consumer = self._cluster.reader(fetch_max_wait_ms=self._cluster.address.longest_poll)
        try:
            await private.start(self._consumer, self._cluster.address.timeout)
            self._consumer.assign([_PLACE])
            first = await self._cluster.ends(TOPIC, [0], first=True)
            self._position = first[0]
            self._consumer.seek(_PLACE, first[0])
        except TROUBLE as error:
            raise fault(error, self._cluster.address.shown) from error
        self._follower = asyncio.create_task(self._follow(self._consumer))
        await self.sync()

    async def sync(self) -> None:
        """Return when everything that was written before is known here. Many who ask at the same time share one look."""
        self._asked += 1
        ticket = self._asked
        async with self._looking:
            if self._seen < ticket:
                ticket = self._asked
                await self._look()
                self._seen = ticket

    async def _look(self) -> None:
        end = (await self._cluster.ends(TOPIC, [0]))[0]
        try:
            async with asyncio.timeout(self._cluster.address.timeout), self._news:
                while self._position < end and self._fault is None:
                    await self._news.wait()
        except TimeoutError as error:
            raise ConnectionLostError(f"{self._cluster.address.shown}: no answer in time") from error
        if self._fault is not None:
            raise self._fault

    async def close(self) -> None:
        if self._follower is not None:
            await private.end(self._follower)
        if self._consumer is not None:
            await private.stop(self._consumer, self._cluster.address.timeout)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                found = await consumer.getmany(_PLACE, timeout_ms=60_000)
            except TROUBLE:
                await asyncio.sleep(0.1)
                continue
            for record in found.get(_PLACE, ()):
                self._take((record.key or b"").decode(), record.value)
                self._position = record.offset + 1
            async with self._news:
                self._news.notify_all()

    def _take(self, name: str, value: bytes | None) -> None:
        try:
            if value is None:
                self.records.pop(name, None)
            else:
                self.records[name] = _decode(value)
        except msgspec.MsgspecError as error:
            shown = self._cluster.address.shown
            self._fault = IncompatibleStoreError(
                f"{shown}: the topic {TOPIC!r} was written by another version, or by others: {error}"
            )
        self._changed(name)
