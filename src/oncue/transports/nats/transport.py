"""The transport itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from oncue.core.errors import InvalidValueError, TransportClosedError
from oncue.core.message import Message, Send
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_prefetch, check_spec
from oncue.transports.examination import Remark
from oncue.transports.nats.address import Address, parse
from oncue.transports.nats.codec import MAX_HEAD
from oncue.transports.nats.core import RefusedError
from oncue.transports.nats.examination import examine
from oncue.transports.nats.faults import fault
from oncue.transports.nats.intake import take
from oncue.transports.nats.jetstream import JetStream
from oncue.transports.nats.link import Link
from oncue.transports.nats.mover import move_due
from oncue.transports.nats.publisher import Publisher
from oncue.transports.nats.queues import Queues
from oncue.transports.nats.subscription import NATSSubscription
from oncue.transports.nats.turns import Turns

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=False,
    free_release=True,
    native_delay=True,
    longest_delay=None,
    fifo=False,
    lease_cap=None,
    max_body=1024 * 1024 - MAX_HEAD,
    headers=True,
    depth=frozenset({"ready", "leased", "delayed"}),
    peek=True,
    retention=False,
)
"""With a server's usual limit of 1 MiB for a message."""

_DROPPED = 1000
"""Messages that are dropped at a time."""


async def open_nats(url: str) -> NATSTransport:
    """Open the server that `url` names, such as `nats://localhost:4222`; `tls:` is with TLS.

    Raise `InvalidValueError` for another URL, `ConnectionLostError` when nobody answers, `AccessDeniedError` for wrong
    credentials, and `IncompatibleStoreError` for a server without JetStream.
    """
    transport = NATSTransport(parse(url))
    try:
        await transport.introduce()
    except BaseException:
        await transport.close()
        raise
    return transport


class NATSTransport:
    """One connection to a server, bound to the event loop that it was opened in."""

    def __init__(self, address: Address) -> None:
        self.features = FEATURES
        self.link = Link(address)
        self._jetstream = JetStream(self.link)
        self._queues = Queues(self._jetstream)
        self._publisher = Publisher(self._queues)
        self.link.on_lost = self._queues.forget
        self._subscriptions: set[NATSSubscription] = set()
        self._turns = Turns()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def introduce(self) -> None:
        """Connect, and see what the server can do."""
        try:
            await self._jetstream.account()
        except RefusedError as error:
            raise fault(error, self.link.address.shown) from error
        self.features = msgspec.structs.replace(FEATURES, max_body=self._publisher.most)

    async def declare(self, spec: QueueSpec) -> None:
        self._check_open()
        check_spec(spec)
        if spec.fifo:
            raise InvalidValueError(f"queue {spec.name!r}: JetStream does not keep messages of one key in order")
        if spec.retention is not None:
            raise InvalidValueError(
                f"queue {spec.name!r}: JetStream cannot drop what waited for long and keep what is worked on or delayed"
            )
        await self._queues.declare(spec)

    async def delete(self, queue: str) -> None:
        self._check_open()
        await self._queues.delete(queue)

    async def queues(self) -> Sequence[QueueSpec]:
        self._check_open()
        return await self._queues.declared()

    async def send(self, *sends: Send) -> None:
        self._check_open()
        if sends:
            await self._publisher.send(sends)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[NATSSubscription]:
        self._check_open()
        check_prefetch(prefetch)
        place = await self._queues.find(queue)
        self._check_open()
        subscription = NATSSubscription(
            self._queues,
            self._publisher,
            self._check_open,
            self._subscriptions.__len__,
            self._turns,
            place,
            prefetch,
        )
        self._subscriptions.add(subscription)
        try:
            subscription.begin()
            yield subscription
        finally:
            await subscription.leave()
            self._subscriptions.discard(subscription)

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        self._check_open()
        await self._move(queue)
        return await self._queues.look(queue, limit)

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        await self._move(queue)
        return await self._queues.depth(queue)

    async def purge(self, queue: str) -> int:
        self._check_open()
        place = await self._queues.find(queue)
        dropped = await self._queues.drop_delayed(place)
        while True:
            found = await take(self._queues, place, place.consumer, _DROPPED)
            await asyncio.gather(*(self._jetstream.acknowledge(reply) for reply, _, _ in found))
            dropped += len(found)
            if len(found) < _DROPPED:
                return dropped

    async def examine(self) -> Sequence[Remark]:
        self._check_open()
        connection = await self.link.connection()
        address = self.link.address
        try:
            account = await self._jetstream.account()
            streams = await self._jetstream.streams(f"{address.prefix}.*")
        except RefusedError as error:
            raise fault(error, address.shown) from error
        return await examine(connection.info, account, streams, address)

    async def close(self) -> None:
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await asyncio.gather(*(subscription.leave() for subscription in list(self._subscriptions)))
            await self._publisher.finish()
        finally:
            await self._publisher.close()
            await self.link.close()

    async def _move(self, queue: str) -> None:
        """Where the server does not publish what is due by itself, nobody else may do it at the moment."""
        place = await self._queues.place(queue)
        if place.mover:
            await move_due(self._queues, self._publisher, place)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosedError
