"""The parts of one transport, and how they are put together: two connections, and what is done over them."""

from __future__ import annotations

from collections.abc import Sequence

from oncue.core.message import Send
from oncue.transports.rabbitmq.address import Address
from oncue.transports.rabbitmq.calls import Calls
from oncue.transports.rabbitmq.codec import Parcel, encode
from oncue.transports.rabbitmq.ladder import EXCHANGE, Ladder, key_of, levels
from oncue.transports.rabbitmq.link import Link
from oncue.transports.rabbitmq.publisher import Publisher
from oncue.transports.rabbitmq.queues import Queues
from oncue.transports.rabbitmq.registry import Registry


class Desk:
    """One for each transport.

    There is a connection for publishing alone, because a server that is short of memory stops listening to whoever publishes:
    acknowledgements have to get through all the same.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.consuming = Link(address, "oncue")
        self._publishing = Link(address, "oncue, publishing")
        self.publisher = Publisher(self._publishing)
        self._calls = Calls(self.consuming)
        self._registry = Registry(self._calls, self.publisher)
        self._ladder = Ladder(self._calls, address.queues or "quorum")
        self.publisher.on_lost = self._ladder.forget
        self.queues = Queues(address, self._calls, self.publisher, self._registry, self._ladder)

    async def parcels(self, sends: Sequence[Send]) -> Sequence[Parcel]:
        """What is to be published for `sends`, once what their delays need is there.

        Raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored, and `QueueNotFoundError` for a delay in a
        queue that is not there.
        """
        parcels, ways = [], []
        for send in sends:
            properties, body = encode(send)
            if send.delay:
                way = levels(send.delay)
                ways.append((send.queue, way))
                parcels.append(Parcel(EXCHANGE, key_of(send.queue, way), properties, body))
            else:
                parcels.append(Parcel("", send.queue, properties, body))
        for queue, way in ways:
            await self.prepare(queue, way)
        return parcels

    async def prepare(self, queue: str, way: Sequence[int]) -> None:
        """Have a delay end in the queue; raise `QueueNotFoundError` if there is none."""
        await self._ladder.bind(queue)
        await self._ladder.prepare(way)

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        await self.publisher.finish()
        await self.publisher.close()
        self._registry.close()
        await self._publishing.close()
        await self.consuming.close()
