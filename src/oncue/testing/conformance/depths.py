"""How many messages there are: what autoscalers and people go by."""

from __future__ import annotations

import asyncio

import pytest

from oncue.core.errors import QueueNotFoundError
from oncue.testing.conformance.suite import TransportCases, case, finish, need, need_delay, sends

_HOUR = 3600.0
_NOTHING = "this transport counts nothing exactly"


class Depths(TransportCases):
    """Depth is exact at every moment, or None; it is never a guess."""

    @case("T27")
    async def test_depth_follows_messages_from_sending_to_acknowledgement(self) -> None:
        """T27: right after sending, while they are worked on, delayed, given back and finished; in each connection."""
        transport, other = await self.connect(), await self.connect()
        need(transport.features.depth, _NOTHING)
        need_delay(transport, _HOUR)
        queue = await self.declare(transport)
        await self.assert_depth(other, queue, ready=0, leased=0, delayed=0)
        await transport.send(*sends(queue, ["0", "1", "2"]))
        await self.assert_depth(other, queue, ready=3, leased=0, delayed=0)
        async with transport.subscribe(queue, prefetch=3) as subscription:
            first, second, third = await self.receive_all(subscription, 3)
            await self.assert_depth(other, queue, ready=0, leased=3, delayed=0)
            await first.nack(delay=_HOUR)
            await self.assert_depth(other, queue, ready=0, leased=2, delayed=1)
            await second.ack()
            await self.assert_depth(other, queue, ready=0, leased=1, delayed=1)
            await third.extend(10)
        await self.assert_depth(other, queue, ready=1, leased=0, delayed=1)
        dropped = await transport.purge(queue)
        assert dropped == 2 or (dropped == 1 and "delayed" not in transport.features.depth)
        await self.assert_depth(other, queue, ready=0, leased=0, delayed=0)

    @case("T27")
    async def test_depth_shows_what_a_dead_consumer_held_as_ready(self) -> None:
        """T27: as soon as its leases are over, whether or not anybody looks for messages."""
        transport, other = await self.connect(), await self.connect()
        need(transport.features.depth & {"ready", "leased"}, "this transport counts neither of them exactly")
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["0", "1", "2"]))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await self.receive(subscription)
            await self.assert_depth(other, queue, ready=2, leased=1, delayed=0)
            await asyncio.sleep(self.lease + self.tolerance)
            depth = await other.depth(queue)
            assert (depth.ready or 0) + (depth.leased or 0) == 3 or not {"ready", "leased"} <= transport.features.depth
        await self.assert_depth(other, queue, ready=3, leased=0, delayed=0)

    @case("T27")
    async def test_depth_counts_new_arrivals_behind_old_work_in_hand(self) -> None:
        """T27: one old message is worked on, newer ones are finished, still newer ones wait: each is counted."""
        transport, other = await self.connect(), await self.connect()
        need(transport.features.competing, "newer messages may wait for the consumer that is at work on the old one")
        need(transport.features.depth, _NOTHING)
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["old"]))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            old = await self.receive(subscription)
            await other.send(*sends(queue, [str(index) for index in range(5)]))
            async with other.subscribe(queue, prefetch=5) as busy:
                await finish(await self.receive_all(busy, 5))
            await self.assert_depth(other, queue, ready=0, leased=1, delayed=0)
            await other.send(*sends(queue, [str(index) for index in range(4)]))
            await self.assert_depth(other, queue, ready=4, leased=1, delayed=0)
            await self.assert_depth(transport, queue, ready=4, leased=1, delayed=0)
            await old.ack()
        await self.assert_depth(other, queue, ready=4, leased=0, delayed=0)

    @case("T27")
    async def test_depth_counts_what_waits_for_its_turn_in_a_fifo_queue(self) -> None:
        """T27: messages behind another of their key are work too."""
        transport = await self.connect()
        need(transport.features.fifo, "this transport keeps no order")
        need(transport.features.depth, _NOTHING)
        queue = await self.declare(transport, fifo=True)
        await transport.send(*sends(queue, ["0", "1", "2"], key="k"))
        await self.assert_depth(transport, queue, ready=3, leased=0, delayed=0)
        async with transport.subscribe(queue, prefetch=3) as subscription:
            lease = await self.receive(subscription)
            await self.assert_depth(transport, queue, ready=2, leased=1, delayed=0)
            await lease.extend(10)

    @case("T27", "T44")
    async def test_the_depth_of_a_queue_that_is_not_there_is_an_error(self) -> None:
        """T27, T44: and not 0, which an autoscaler would act upon."""
        transport = await self.connect()
        with pytest.raises(QueueNotFoundError):
            await transport.depth(self.name("missing"))
        queue = await self.declare(transport)
        await transport.delete(queue)
        with pytest.raises(QueueNotFoundError):
            await transport.depth(queue)
