"""Looks at queues from outside their groups: how many messages there are, which ones, and where a purge ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import TopicPartition

from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message
from oncue.transports.base import Depth
from oncue.transports.kafka import private
from oncue.transports.kafka.codec import Received, decode
from oncue.transports.kafka.desk import Desk
from oncue.transports.kafka.faults import TROUBLE, fault
from oncue.transports.kafka.ledger import Ledger, load
from oncue.transports.kafka.registry import Record


async def depth(desk: Desk, queue: str) -> Depth:
    """From what is committed; where the group has no members, nothing is held any more."""
    record = await desk.find(queue)
    alive, (ledgers, ends) = await asyncio.gather(desk.cluster.alive(desk.group(queue)), _state(desk, record))
    ready = leased = 0
    for partition, ledger in ledgers.items():
        more, held = _count(ledger, ends[partition], record.floors.get(partition, 0))
        ready += more
        leased += held
    return Depth(ready, leased, None) if alive else Depth(ready + leased, 0, None)


async def purge(desk: Desk, queue: str) -> int:
    """Set the floors where the ends are now; those who are at work there drop the rest."""
    record = await desk.find(queue)
    ledgers, ends = await _state(desk, record)
    counts = (_count(ledger, ends[place], record.floors.get(place, 0))[0] for place, ledger in ledgers.items())
    count = sum(counts)
    await desk.write(queue, msgspec.structs.replace(record, floors=ends))
    return count


async def oldest(desk: Desk, queue: str, limit: int) -> Sequence[Message]:
    """Reads along, and leaves no trace. The order is that of the times at which they were sent."""
    record = await desk.find(queue)
    if limit <= 0:
        return []
    ledgers, ends = await _state(desk, record)
    consumer = desk.cluster.reader()
    found: list[tuple[Any, Received]] = []
    try:
        async with asyncio.timeout(desk.address.timeout):
            await private.start(consumer, desk.address.timeout)
            left = {place: end for place, end in ends.items() if ledgers[place].watermark < end}
            if left:
                consumer.assign([TopicPartition(record.topic, place) for place in left])
            for place in left:
                consumer.seek(TopicPartition(record.topic, place), ledgers[place].watermark)
            while left:
                await _look(consumer, record, ledgers, left, found, limit)
    except TimeoutError as error:
        raise ConnectionLostError(f"{desk.address.shown}: no answer in time") from error
    except TROUBLE as error:
        raise fault(error, desk.address.shown) from error
    finally:
        await private.stop(consumer, desk.address.timeout)
    found.sort(key=lambda pair: pair[0])
    return [received.message for _, received in found[:limit]]


async def _look(
    consumer: Any, record: Record, ledgers: Mapping[int, Ledger], left: dict[int, int], found: list[Any], limit: int
) -> None:
    batches = await consumer.getmany(*(TopicPartition(record.topic, each) for each in left), timeout_ms=500)
    for place, records in batches.items():
        ledger = ledgers[place.partition]
        floor = record.floors.get(place.partition, 0)
        for each in records:
            open_ = each.offset >= ledger.next or each.offset in ledger.undone
            if each.offset < left.get(place.partition, 0) and open_ and each.offset >= floor:
                received = decode(each)
                found.append(((each.timestamp, received.state.order), received))
                ledger.position += 1
    for partition in list(left):
        position = await consumer.position(TopicPartition(record.topic, partition))
        if position >= left[partition] or sum(1 for _ in found) >= limit * len(ledgers):
            del left[partition]


async def _state(desk: Desk, record: Record) -> tuple[dict[int, Ledger], dict[int, int]]:
    places = range(await desk.partitions(record, anew=True))
    group = desk.group(record.spec.name)
    committed, ends, starts = await asyncio.gather(
        desk.cluster.committed(group, record.topic, places),
        desk.cluster.ends(record.topic, places),
        desk.cluster.ends(record.topic, places, first=True),
    )
    ledgers = {}
    for place in places:
        ledger = load(place, record.incarnation, *committed.get(place, (0, "")))
        ledger.next = max(ledger.next, starts[place])
        ledgers[place] = ledger
    return ledgers, dict(ends)


def _count(ledger: Ledger, end: int, floor: int) -> tuple[int, int]:
    """How many messages wait, and how many are held."""
    held = sum(entry.lent for entry in ledger.undone.values())
    purged = floor if floor > ledger.floor else 0
    waiting = sum(entry.offset >= purged for entry in ledger.undone.values() if not entry.lent)
    return waiting + max(0, end - max(ledger.next, floor)), held
