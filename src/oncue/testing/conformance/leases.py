"""How long a lease lasts, and what keeps it."""

from __future__ import annotations

import asyncio
import math

import pytest

from oncue.core.errors import InvalidValueError
from oncue.core.message import Send
from oncue.testing.conformance.suite import EARLY, TransportCases, case, longest, message, need, now, refused, sends
from oncue.transports.base import QueueSpec


class Leases(TransportCases):
    """A lease lasts as long as it is extended, and ends when it is not."""

    @case("T15")
    async def test_a_lease_that_is_extended_in_time_stays_held(self) -> None:
        """T15: work that takes several leases is handed out once, and is acknowledged at its end."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(Send(queue, message("long work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            async with other.subscribe(queue, prefetch=1) as waiting:
                finished = now() + 3 * self.lease
                while now() < finished:
                    await lease.extend(self.lease)
                    await self.expect_nothing(waiting, seconds=self.lease / 3)
                await lease.ack()
                await self.expect_nothing(subscription, waiting)

    @case("T15", "T16")
    async def test_a_lease_ends_once_it_is_no_longer_extended(self) -> None:
        """T15, T16: as long after the last extension as that one asked for, and then its former owner is refused."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            async with other.subscribe(queue, prefetch=1) as waiting:
                await self.expect_nothing(waiting, seconds=self.lease / 2)
                extended = now()
                await lease.extend(self.lease)
                again = await self.receive(subscription, waiting, within=self.lease + self.tolerance)
                assert now() - extended >= self.lease - EARLY
                assert again.attempt == 2
                await refused(lease.ack())
                await again.ack()

    @case("T15")
    async def test_a_lease_may_be_extended_by_more_than_the_queues_own(self) -> None:
        """T15: the time asked for is what counts."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            await lease.extend(longest(transport, 10 * self.lease))
            async with other.subscribe(queue, prefetch=1) as waiting:
                await self.expect_nothing(waiting, seconds=self.lease + self.tolerance)
            await lease.ack()

    @case("T15")
    async def test_extensions_do_not_add_up(self) -> None:
        """T15: the lease ends the time asked for after the last one, even if that is sooner than it would have."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            lease = await self.receive(subscription)
            for _ in range(4):
                extended = now()
                await lease.extend(self.lease)
            again = await self.receive(subscription, within=self.lease + self.tolerance)
            assert now() - extended >= self.lease - EARLY
            await refused(lease.ack())
            await again.ack()

    @case("T17")
    async def test_an_extension_that_fails_leaves_the_lease_as_it_was(self) -> None:
        """T17: it can be extended again, and nothing is lost."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            lease = await self.receive(subscription)
            for seconds in (0.0, -1.0, math.nan, math.inf):
                with pytest.raises(InvalidValueError):
                    await lease.extend(seconds)
            await self.expect_nothing(subscription)
            await lease.extend(10)
            await lease.ack()
            await self.expect_nothing(subscription)

    @case("T17", "T41")
    async def test_an_extension_may_be_cancelled(self) -> None:
        """T17, T41: at any moment; the lease is held all the same."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            lease = await self.receive(subscription)
            for turns in range(6):
                extending = asyncio.ensure_future(lease.extend(10))
                for _ in range(turns):
                    await asyncio.sleep(0)
                extending.cancel()
                await asyncio.wait([extending])
            await lease.extend(10)
            await self.expect_nothing(subscription)
            await lease.ack()

    @case("T9")
    async def test_a_received_lease_has_half_its_time_left(self) -> None:
        """T9: what was fetched ahead and has waited too long is handed out with a new lease, and was no attempt."""
        transport = await self.connect()
        length = 2 * self.lease
        queue = await self.declare(transport, lease=length)
        await transport.send(*sends(queue, [str(index) for index in range(4)]))
        async with transport.subscribe(queue, prefetch=4) as subscription:
            await (await self.receive(subscription)).ack()
            await asyncio.sleep(0.8 * length)
            for _ in range(3):
                lease = await self.receive(subscription)
                received = now()
                assert lease.attempt == 1 or not transport.features.free_release
                await asyncio.sleep(0.35 * length)
                settling = now()
                if settling - received < length / 2 - EARLY:  # or else this machine was too slow to tell
                    await lease.ack()
                    return
            pytest.fail(f"no sleep of {0.35 * length:g} s ended within {length / 2:g} s: choose a longer lease")

    @case("T18")
    async def test_a_lease_over_the_cap_is_refused(self) -> None:
        """T18: when a queue is declared and when a lease is extended, rather than end sooner than promised."""
        transport = await self.connect()
        cap = transport.features.lease_cap
        need(cap is not None, "a message may be held for any time")
        over = (cap or 0.0) + 1.0
        with pytest.raises(InvalidValueError):
            await transport.declare(QueueSpec(name=self.name("over"), lease=over))
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            with pytest.raises(InvalidValueError):
                await lease.extend(over)
            await lease.extend(self.lease)
            await lease.ack()
