"""The transport itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from oncue.core.errors import AccessDeniedError, QueueNotFoundError, TransportClosedError
from oncue.core.message import Message, Send
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_prefetch, check_spec
from oncue.transports.examination import Remark
from oncue.transports.polling.lines import send
from oncue.transports.polling.subscription import PollingSubscription
from oncue.transports.pubsub.address import Address, parse
from oncue.transports.pubsub.codec import Received
from oncue.transports.pubsub.desk import Desk
from oncue.transports.pubsub.examination import examine
from oncue.transports.pubsub.faults import is_forbidden
from oncue.transports.pubsub.later import Mover
from oncue.transports.pubsub.look import look, purge
from oncue.transports.pubsub.monitoring import Monitoring
from oncue.transports.pubsub.queues import Place
from oncue.transports.pubsub.subscription import PubSubSource

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=False,
    free_release=True,
    native_delay=False,
    longest_delay=None,
    fifo=True,
    lease_cap=None,
    max_body=Address(project="any").max_body,
    headers=True,
    depth=frozenset(),
    peek=False,
    retention=True,
)
_PROBE = "oncue-is-anybody-there"


async def open_pubsub(url: str) -> PubSubTransport:
    """Open what `url` names, such as `pubsub://my-project`, or `pubsub://my-project?emulator=localhost:8085`.

    Raise `InvalidValueError` for another URL, `ConnectionLostError` when nobody answers, and `AccessDeniedError` for wrong
    credentials or none.
    """
    transport = PubSubTransport(parse(url))
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


class PubSubTransport:
    """One client of the service, bound to the event loop that it was opened in."""

    def __init__(self, address: Address) -> None:
        self.desk = Desk(address)
        self.features = msgspec.structs.replace(
            FEATURES, max_body=address.max_body, depth=frozenset({"ready"} if address.counts else ())
        )
        self._monitoring: Monitoring | None = None
        self._subscriptions: set[PollingSubscription[Received]] = set()
        self._movers: dict[str, Mover] = {}
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def declare(self, spec: QueueSpec) -> None:
        self._check_open()
        check_spec(spec)
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
            PubSubSource(self.desk, place, spec), self.desk.tasks, self._check_open, prefetch
        )
        mover = self._mover(place)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            await self._leave(subscription, mover)

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        self._check_open()
        return await look(self.desk, queue, limit)

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        place = await self.desk.queues.look_up(queue)
        if not self.desk.address.counts:
            return Depth(None, None, None)
        if self._monitoring is None:
            self._monitoring = Monitoring(self.desk.address, self.desk.calls.account)
        return Depth(await self._monitoring.undelivered(place.subscription.rpartition("/")[2]), None, None)

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

    def _mover(self, place: Place) -> Mover | None:
        """Whoever moves what is delayed in this queue, for one more subscription."""
        if place.later is None:
            return None
        mover = self._movers.get(place.name)
        if mover is None:
            mover = self._movers[place.name] = Mover(self.desk, place)
        mover.users += 1
        return mover

    async def _leave(self, subscription: PollingSubscription[Received], mover: Mover | None) -> None:
        leaving = [subscription.leave()]
        if mover is not None:
            mover.users -= 1
            if not mover.users:
                self._movers.pop(subscription.source.name, None)
                leaving.append(mover.stop())

        async def leave() -> None:
            await asyncio.gather(*leaving)
            self._subscriptions.discard(subscription)

        await asyncio.shield(self.desk.tasks.begin(leave()))

    async def _close(self) -> None:
        try:
            await asyncio.gather(
                *(subscription.leave() for subscription in list(self._subscriptions)),
                *(mover.stop() for mover in self._movers.values()),
            )
        finally:
            await self.desk.close()
            if self._monitoring is not None:
                self._monitoring.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosedError
