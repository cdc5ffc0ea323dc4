"""Where delayed messages lie: one topic for all queues, in which each partition is a level.

A message lies in the level of the largest power of two that fits into what is left of its delay, and for just that long; so the
oldest one of a level is always the next to go on, either to a lower level or, when it is due, to its queue. Whoever receives from
a queue moves them on, one process for each level at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from oncue.core.errors import QueueNotFoundError, TransportError
from oncue.transports.kafka import private
from oncue.transports.kafka.assignor import Claim, make_assignor
from oncue.transports.kafka.codec import decode, encode
from oncue.transports.kafka.faults import TROUBLE

if TYPE_CHECKING:
    from oncue.transports.kafka.desk import Desk

Mark: TypeAlias = tuple[int, Sequence[tuple[str, bytes]]]

TOPIC = "oncue.delayed"
LEVELS = 33
_SHORTEST = 0.1
_AT_A_TIME = 500
_LONGEST_WAIT = 60.0
_FULL = 1.0
_ABSENT = 5.0
"""Seconds after which to look again whether somebody has made the topic; who delays something does not wait for that."""
_PAUSE = 0.2
_JOINING = 5.0
_TRIM = 5.0
"""Seconds after which what has moved on is deleted, so that it is not moved again when the servers forget the group."""


def level_of(left: float) -> int:
    """Where a message waits that is due in so many seconds."""
    if left < _SHORTEST:
        return 0
    return min(int(math.log2(left / _SHORTEST)) + 1, LEVELS - 1)


def until(level: int, stored: float, due: float) -> float:
    """When a message goes on that was stored there at this time."""
    return due if level == 0 else min(due, stored + _SHORTEST * 2 ** (level - 1))


class Delays(ConsumerRebalanceListener):  # type: ignore[misc]
    """One consumer for each transport that receives."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._mover: asyncio.Task[None] | None = None
        self._waiting: dict[TopicPartition, deque[Any]] = {}
        self._passed: dict[TopicPartition, dict[int, Mark]] = defaultdict(dict)
        """What was passed on and is not committed, by its offset. It is not passed on again, though it may be read again."""
        self._done: dict[TopicPartition, int] = {}  # to be committed
        self._moved: dict[int, int] = {}  # up to where each level may be deleted
        self._trim_at = 0.0
        self._moving = asyncio.Lock()
        self._needed = asyncio.Event()
        self._joined = asyncio.Event()
        self._joined.set()

    def start(self) -> None:
        """Move on what comes due, until it is closed."""
        if self._mover is None:
            self._mover = asyncio.create_task(self._run())

    def need(self) -> None:
        """There is something to move from now on."""
        self._needed.set()
        self.start()

    async def close(self) -> None:
        if self._mover is not None:
            with suppress(TimeoutError):  # who goes away while it joins is missed by the others for a whole session
                async with asyncio.timeout(min(_JOINING, self._desk.address.timeout)):
                    await self._joined.wait()
                    async with self._moving:
                        self._mover.cancel()
            self._mover.cancel()
            await asyncio.wait([self._mover], timeout=_JOINING + 2 * self._desk.address.timeout)
            await private.end(self._mover)

    async def on_partitions_revoked(self, _revoked: Any) -> None:
        async with self._moving:
            self._waiting.clear()
            self._done.clear()
            self._joined.clear()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self._waiting = {place: deque() for place in assigned}
        self._joined.set()

    async def _run(self) -> None:
        while True:
            with suppress(*TROUBLE, TransportError):
                if await self._desk.cluster.topics(TOPIC):
                    await self._follow()
            self._needed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ABSENT):
                    await self._needed.wait()

    async def _follow(self) -> None:
        address = self._desk.address
        consumer = self._desk.cluster.reader(
            group_id=self._desk.group("delayed"),
            partition_assignment_strategy=[make_assignor(LEVELS, Claim, lambda _told: None)],
            session_timeout_ms=round(address.session * 1000),
            heartbeat_interval_ms=address.heartbeat,
            fetch_max_wait_ms=address.longest_poll,
            max_poll_interval_ms=2**31 - 1,
            rebalance_timeout_ms=30_000,
        )
        consumer.subscribe([TOPIC], listener=self)
        self._joined.clear()
        try:
            await consumer.start()
            while True:
                try:
                    await self._read(consumer)
                    await self._move(consumer)
                    await self._trim()
                except (*TROUBLE, TransportError):
                    await asyncio.sleep(_PAUSE)
        finally:
            self._joined.set()
            with suppress(*TROUBLE, TransportError):
                await self._delete_moved()
            await private.stop(consumer, address.timeout)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Wait for something new, or until the next one goes on."""
        wait = min((_goes(lane[0]) for lane in self._waiting.values() if lane), default=math.inf) - time.time()
        wait = max(0.0, min(wait, _TRIM if self._moved else _LONGEST_WAIT))
        wanted = [place for place, lane in self._waiting.items() if not lane]
        if len(wanted) == len(self._waiting):
            wanted.clear()  # naming none means all, also those that a sharing out brings while this waits
        else:
            wait = min(wait, _FULL)
        if self._waiting and all(self._waiting.values()):
            await asyncio.sleep(wait)
            return
        found = await consumer.getmany(*wanted, timeout_ms=math.ceil(wait * 1000), max_records=_AT_A_TIME)
        for place, records in found.items():
            if place in self._waiting:
                self._waiting[place].extend(records)

    async def _move(self, consumer: AIOKafkaConsumer) -> None:
        now = time.time()
        async with self._moving:
            going = [
                self._pass_on(place, record)
                for place, lane in self._waiting.items()
                for record in itertools.takewhile(lambda record: _goes(record) <= now, lane)
                if self._passed[place].get(record.offset) != _mark(record)
            ]
            results = await asyncio.gather(*going, return_exceptions=True)
            for place, lane in self._waiting.items():
                while lane and self._passed[place].get(lane[0].offset) == _mark(lane[0]):
                    self._done[place] = lane.popleft().offset + 1
            await self._commit(consumer)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        done = dict(self._done)
        if done:
            async with asyncio.timeout(self._desk.address.timeout):
                await consumer.commit(done)
            self._done.clear()
            for place, end in done.items():
                self._passed[place] = {offset: mark for offset, mark in self._passed[place].items() if offset >= end}
            self._moved |= {place.partition: end for place, end in done.items()}

    async def _trim(self) -> None:
        if self._moved and time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + _TRIM
            await self._delete_moved()

    async def _delete_moved(self) -> None:
        moved = dict(self._moved)
        if moved:
            await self._desk.cluster.drop(TOPIC, moved)
            self._moved = {level: offset for level, offset in self._moved.items() if offset > moved.get(level, 0)}

    async def _pass_on(self, place: TopicPartition, record: Any) -> None:
        message, state = received = decode(record)
        if state.due > time.time():
            await self._desk.wait_on(received)
        else:
            # a queue that was deleted takes all that was in it along
            with suppress(QueueNotFoundError):
                queue = self._desk.registry.records.get(state.queue) or await self._desk.find(state.queue)
                if queue.incarnation == state.incarnation:
                    await self._desk.put(queue, encode(message, attempts=state.attempts, lost=state.lost))
        self._passed[place][record.offset] = _mark(record)


def _goes(record: Any) -> float:
    return until(record.partition, record.timestamp / 1000, decode(record).state.due)


def _mark(record: Any) -> Mark:
    """What tells this record from one that has the same offset in a topic that was made anew."""
    return record.timestamp, tuple(record.headers)
