"""The transport itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from oncue.core.errors import InvalidValueError, QueueNotFoundError, TransportClosedError
from oncue.core.message import LONGEST_DELAY, Message, Send, new_id
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_equal, check_spec
from oncue.transports.examination import Remark
from oncue.transports.kafka import private, view
from oncue.transports.kafka.address import Address, parse
from oncue.transports.kafka.codec import MAX_BODY
from oncue.transports.kafka.desk import Desk
from oncue.transports.kafka.examination import examine
from oncue.transports.kafka.member import Member
from oncue.transports.kafka.subscription import KafkaSubscription

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=False,
    free_release=True,
    native_delay=False,
    longest_delay=LONGEST_DELAY,
    fifo=True,
    lease_cap=None,
    max_body=MAX_BODY,
    headers=True,
    depth=frozenset({"ready", "leased"}),
    peek=True,
    retention=False,
    competing=False,
)


async def open_kafka(url: str) -> KafkaTransport:
    """Open the cluster that `url` names, such as `kafka://localhost:9092`; `kafka+ssl:` is with TLS.

    Raise `InvalidValueError` for another URL, `ConnectionLostError` when nobody answers, and `AccessDeniedError` for wrong
    credentials.
    """
    address = parse(url)
    private.quieten()
    transport = KafkaTransport(address)
    try:
        await transport.desk.start()
    except BaseException:
        await transport.close()
        raise
    return transport


class KafkaTransport:
    """One producer, and one consumer for each queue that is received from; bound to the event loop that it was opened in."""

    features = FEATURES

    def __init__(self, address: Address) -> None:
        self.desk = Desk(address, self._changed)
        self._members: dict[str, Member] = {}
        self._joining: dict[str, asyncio.Lock] = {}
        self._ends: set[asyncio.Task[None]] = set()
        self._subscriptions: set[KafkaSubscription] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def declare(self, spec: QueueSpec) -> None:
        self.check_open()
        check_spec(spec)
        if spec.retention is not None:
            raise InvalidValueError(
                f"queue {spec.name!r}: on Kafka messages are kept until they are done, whatever their age"
            )
        await self.desk.registry.sync()
        have = self.desk.registry.records.get(spec.name)
        if have is not None:
            check_equal(have.spec, spec)
            if await self.desk.cluster.topics(have.topic):
                return
            await self.desk.write(spec.name, None)  # somebody else deleted its topic
        await self.desk.do(self.desk.declare(spec, new_id()[:8]))

    async def delete(self, queue: str) -> None:
        self.check_open()
        try:
            record = await self.desk.find(queue)
        except QueueNotFoundError:
            return
        await self.desk.do(self._delete(queue, record.topic))

    async def queues(self) -> Sequence[QueueSpec]:
        self.check_open()
        await self.desk.registry.sync()
        return [record.spec for _, record in sorted(self.desk.registry.records.items())]

    async def send(self, *sends: Send) -> None:
        self.check_open()
        if sends:
            await self.desk.send(sends)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[KafkaSubscription]:
        self.check_open()
        subscription = KafkaSubscription(self, queue, prefetch)
        self._subscriptions.add(subscription)
        try:
            await self.desk.find(queue)
            yield subscription
        finally:
            await subscription.leave()
            self._subscriptions.discard(subscription)

    async def join(self, subscription: KafkaSubscription) -> Member:
        """This process's member of the group of the queue, with this subscription as one of those it works for."""
        queue = subscription.queue
        async with self._joining.setdefault(queue, asyncio.Lock()):
            member = self._members.get(queue)
            if member is not None and (member.ending or member.ended):
                await member.stopped.wait()
                member = None
            if member is None:
                record = await self.desk.find(queue)
                partitions = await self.desk.partitions(record)
                subscription.check_open()
                member = self._members[queue] = Member(self.desk, record, partitions)
                member.subscriptions[subscription] = None
                self.desk.delays.start()
                await member.start()
            member.subscriptions[subscription] = None
            return member

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        self.check_open()
        return await view.oldest(self.desk, queue, limit)

    async def depth(self, queue: str) -> Depth:
        self.check_open()
        return await view.depth(self.desk, queue)

    async def purge(self, queue: str) -> int:
        self.check_open()
        return await view.purge(self.desk, queue)

    async def examine(self) -> Sequence[Remark]:
        self.check_open()
        return await examine(self.desk)

    async def close(self) -> None:
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def check_open(self) -> None:
        """Raise `TransportClosedError` when it may not be used any more."""
        if self._closed:
            raise TransportClosedError

    async def _close(self) -> None:
        try:
            await asyncio.gather(*(subscription.leave() for subscription in list(self._subscriptions)))
            if self._ends:
                await asyncio.wait(list(self._ends))
        finally:
            await self.desk.close()

    async def _delete(self, queue: str, topic: str) -> None:
        await self.desk.write(queue, None)
        await self.desk.cluster.delete(topic)

    def _changed(self, queue: str) -> None:
        member = self._members.get(queue)
        if member is None or member.ended:
            return
        now = self.desk.registry.records.get(queue)
        if now is None or now.incarnation != member.record.incarnation:
            member.lose_queue()
            end = asyncio.ensure_future(member.end(QueueNotFoundError(queue)))
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
        else:
            member.purge()
