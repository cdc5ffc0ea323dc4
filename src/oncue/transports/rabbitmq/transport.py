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
from oncue.transports.rabbitmq.address import Address, parse
from oncue.transports.rabbitmq.codec import MAX_BODY
from oncue.transports.rabbitmq.desk import Desk
from oncue.transports.rabbitmq.examination import examine
from oncue.transports.rabbitmq.ladder import LONGEST
from oncue.transports.rabbitmq.management import Management
from oncue.transports.rabbitmq.subscription import RabbitMQSubscription

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=False,
    free_release=True,
    native_delay=True,
    longest_delay=LONGEST,
    fifo=False,
    lease_cap=Address(hosts=()).longest_hold,
    max_body=MAX_BODY,
    headers=True,
    depth=frozenset({"ready"}),
    peek=False,
    retention=True,
)


async def open_rabbitmq(url: str) -> RabbitMQTransport:
    """Open the server that `url` names, such as `amqp://guest:guest@localhost:5672/`; `amqps:` is with TLS.

    Raise `InvalidValueError` for another URL, `ConnectionLostError` when nobody answers, and `AccessDeniedError` for wrong
    credentials or a virtual host that is not there.
    """
    transport = RabbitMQTransport(parse(url))
    try:
        await transport.desk.consuming.connection()
    except BaseException:
        await transport.close()
        raise
    return transport


class RabbitMQTransport:
    """Two connections to a server, bound to the event loop that they were opened in."""

    def __init__(self, address: Address) -> None:
        self.desk = Desk(address)
        self.features = msgspec.structs.replace(FEATURES, lease_cap=address.longest_hold)
        self._management = _management(address)
        self._subscriptions: set[RabbitMQSubscription] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def declare(self, spec: QueueSpec) -> None:
        self._check_open()
        check_spec(spec)
        if spec.fifo:
            raise InvalidValueError(f"queue {spec.name!r}: RabbitMQ does not keep messages of one key in order")
        longest = self.desk.address.longest_hold
        if spec.lease > longest:
            raise InvalidValueError(
                f"queue {spec.name!r}: a lease of {spec.lease:g} s is over the {longest:g} s that this server lets a message "
                "be held; see consumer_timeout"
            )
        await self.desk.queues.declare(spec)

    async def delete(self, queue: str) -> None:
        self._check_open()
        await self.desk.queues.delete(queue)

    async def queues(self) -> Sequence[QueueSpec]:
        self._check_open()
        return await self.desk.queues.declared()

    async def send(self, *sends: Send) -> None:
        self._check_open()
        if sends:
            parcels = await self.desk.parcels(sends)
            self._check_open()
            await self.desk.publisher.send(parcels)

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[RabbitMQSubscription]:
        self._check_open()
        check_prefetch(prefetch)
        spec = await self.desk.queues.get(queue)
        self._check_open()
        subscription = RabbitMQSubscription(self.desk, self._check_open, spec, prefetch)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            await subscription.leave()
            self._subscriptions.discard(subscription)

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        self._check_open()
        return await self.desk.queues.look(queue, limit)

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        ready = await self.desk.queues.count(queue)
        management = self._management
        leased = None if management is None else await management.unacknowledged(self.desk.address.vhost, queue)
        return Depth(ready, leased, None)

    async def purge(self, queue: str) -> int:
        self._check_open()
        return await self.desk.queues.purge(queue)

    async def examine(self) -> Sequence[Remark]:
        self._check_open()
        connection = await self.desk.consuming.connection()
        return await examine(connection.server, self.desk.address, self._management)

    async def close(self) -> None:
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await asyncio.gather(*(subscription.leave() for subscription in list(self._subscriptions)))
        finally:
            await self.desk.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosedError


def _management(address: Address) -> Management | None:
    if address.management is None:
        return None
    return Management(address.management, address.user, address.password, address.timeout)
