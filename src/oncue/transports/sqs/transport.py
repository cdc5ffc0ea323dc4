"""The transport itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from oncue.core.errors import AccessDeniedError, InvalidValueError, QueueNotFoundError, TransportClosedError
from oncue.core.message import Message, Send
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_prefetch, check_spec
from oncue.transports.examination import Remark
from oncue.transports.polling.lines import send
from oncue.transports.polling.subscription import PollingSubscription
from oncue.transports.sqs.address import Address, parse
from oncue.transports.sqs.codec import Received
from oncue.transports.sqs.desk import Desk
from oncue.transports.sqs.examination import examine
from oncue.transports.sqs.faults import is_forbidden
from oncue.transports.sqs.look import look, purge
from oncue.transports.sqs.subscription import SQSSource

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=False,
    free_release=True,
    native_delay=True,
    longest_delay=None,
    fifo=True,
    lease_cap=Address().longest_hold,
    max_body=Address().max_body,
    headers=True,
    depth=frozenset(),
    peek=False,
    retention=True,
)
_PROBE = "oncue-is-anybody-there"


async def open_sqs(url: str) -> SQSTransport:
    """Open what `url` names, such as `sqs://eu-west-1`, or `sqs://?endpoint=http://localhost:9324` for another server.

    Raise `InvalidValueError` for another URL, no region or no credentials, `ConnectionLostError` when nobody answers, and
    `AccessDeniedError` for wrong credentials.
    """
    transport = SQSTransport(parse(url))
    try:
        await transport.desk.calls.open()
        try:
            await transport.desk.queues.place(_PROBE)
        except QueueNotFoundError:
            pass
        except AccessDeniedError as error:
            if not is_forbidden(error):
                raise
    except BaseException:
        await transport.close()
        raise
    return transport


class SQSTransport:
    """One client of the service, bound to the event loop that it was opened in."""

    def __init__(self, address: Address) -> None:
        self.desk = Desk(address)
        self.features = msgspec.structs.replace(
            FEATURES,
            lease_cap=address.longest_hold,
            max_body=address.max_body,
            depth=frozenset({"ready", "leased"}) if address.depth == "approximate" else frozenset(),
        )
        self._subscriptions: set[PollingSubscription[Received]] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def declare(self, spec: QueueSpec) -> None:
        self._check_open()
        check_spec(spec)
        longest = self.desk.address.longest_hold
        if spec.lease > longest:
            raise InvalidValueError(
                f"queue {spec.name!r}: a lease of {spec.lease:g} s is over the {longest:g} s that SQS lets a message be held"
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
            await asyncio.shield(self.desk.tasks.begin(send(parcels)))

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[PollingSubscription[Received]]:
        self._check_open()
        check_prefetch(prefetch)
        place, spec = await self.desk.queues.get(queue)
        self._check_open()
        subscription = PollingSubscription(
            SQSSource(self.desk, place, spec), self.desk.tasks, self._check_open, prefetch
        )
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            await asyncio.shield(self.desk.tasks.begin(self._leave(subscription)))

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        self._check_open()
        return await look(self.desk, queue, limit)

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        ready, leased = await self.desk.queues.counts(queue)
        return Depth(ready, leased, None) if self.features.depth else Depth(None, None, None)

    async def purge(self, queue: str) -> int:
        self._check_open()
        return await purge(self.desk, queue)

    async def examine(self) -> Sequence[Remark]:
        self._check_open()
        return await examine(self.desk)

    async def close(self) -> None:
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _leave(self, subscription: PollingSubscription[Received]) -> None:
        await subscription.leave()
        self._subscriptions.discard(subscription)

    async def _close(self) -> None:
        try:
            await asyncio.gather(*(subscription.leave() for subscription in list(self._subscriptions)))
        finally:
            await self.desk.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosedError
