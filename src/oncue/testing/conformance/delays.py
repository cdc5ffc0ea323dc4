"""What comes later, and what is kept too long."""

from __future__ import annotations

import asyncio
import math

import pytest

from oncue.core.errors import InvalidValueError
from oncue.core.message import Send
from oncue.testing.conformance.suite import (
    EARLY,
    TransportCases,
    case,
    finish,
    message,
    need,
    need_delay,
    now,
    sends,
)

_HOUR = 3600.0
_YEAR = 365 * 86400.0
_MANY = 10_000


class Delays(TransportCases):
    """A delayed message comes when it is due, holds up nobody, and is counted apart."""

    @case("T21")
    async def test_a_delayed_message_comes_when_it_is_due(self) -> None:
        """T21: no sooner than asked, and no later than the tolerance, to a consumer that waits already."""
        transport = await self.connect()
        need_delay(transport, 2 * self.quiet)
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for _ in range(3):
                sent = now()
                await transport.send(Send(queue, message("later"), 2 * self.quiet))
                stored = now()
                lease = await self.receive(subscription)
                assert now() - sent >= 2 * self.quiet - EARLY
                assert now() - stored <= 2 * self.quiet + self.tolerance
                assert lease.attempt == 1
                await lease.ack()

    @case("T19")
    async def test_a_delayed_message_outlives_its_senders_connection(self) -> None:
        """T19: it waits in the store and not with whoever sent it."""
        transport, sender = await self.connect(), await self.connect()
        need_delay(transport, 2 * self.quiet)
        queue = await self.declare(transport)
        sent = now()
        await sender.send(Send(queue, message("later"), 2 * self.quiet))
        await sender.close()
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            assert now() - sent >= 2 * self.quiet - EARLY
            await lease.ack()

    @case("T19")
    async def test_a_delayed_message_needs_no_consumer_to_come_due(self) -> None:
        """T19: one that was due before its consumer came is there at once."""
        transport = await self.connect()
        delay = self.quiet + self.tolerance
        need_delay(transport, delay)
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("later"), delay))
        await asyncio.sleep(delay + self.tolerance)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await (await self.receive(subscription, within=self.tolerance)).ack()

    @case("T20")
    async def test_delayed_messages_come_in_the_order_in_which_they_are_due(self) -> None:
        """T20: whatever the order in which they were sent."""
        transport = await self.connect()
        need_delay(transport, 5 * self.quiet)
        queue = await self.declare(transport)
        order = (5, 3, 1, 4, 2)
        await transport.send(*(Send(queue, message(str(place)), place * self.quiet) for place in order))
        async with transport.subscribe(queue, prefetch=5) as subscription:
            leases = await self.receive_all(subscription, 5)
            assert [int(lease.message.body) for lease in leases] == [1, 2, 3, 4, 5]
            await finish(leases)

    @case("T20")
    async def test_many_delayed_messages_hold_up_none_that_is_ready(self) -> None:
        """T20: neither what was sent before them nor after."""
        transport = await self.connect()
        need_delay(transport, _HOUR)
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("before")))
        for _ in range(_MANY // 1000):
            await transport.send(*sends(queue, [""] * 1000, delay=_HOUR))
        await transport.send(Send(queue, message("after")))
        assert await self.contents(transport, queue, 2) == [b"after", b"before"]

    @case("T21")
    async def test_long_delays_are_not_cut_short(self) -> None:
        """T21: an hour, a month, nine years: none of them comes at once."""
        transport = await self.connect()
        limit = transport.features.longest_delay
        delays = [delay for delay in (60.0, _HOUR, 30 * 86400.0, _YEAR, 9 * _YEAR) if limit is None or delay <= limit]
        need(delays, "this transport has no delays of a minute or more")
        queue = await self.declare(transport)
        await transport.send(*(Send(queue, message(f"{delay:g} s"), delay) for delay in delays))
        async with transport.subscribe(queue, prefetch=len(delays)) as subscription:
            await self.expect_nothing(subscription)

    @case("T21", "T44")
    async def test_a_delay_that_is_none_is_refused(self) -> None:
        """T21, T44: in sending, in giving back, and in what goes out with an acknowledgement; nothing is changed."""
        transport = await self.connect()
        queue = await self.declare(transport)
        limit = transport.features.longest_delay
        wrong = [-1.0, math.nan, math.inf, 11 * _YEAR, *([] if limit is None else [limit + 1.0])]
        for delay in wrong:
            with pytest.raises(InvalidValueError):
                await transport.send(Send(queue, message("never"), delay))
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            for delay in wrong:
                with pytest.raises(InvalidValueError):
                    await lease.nack(delay=delay)
                with pytest.raises(InvalidValueError):
                    await lease.ack(Send(queue, message("never"), delay))
            await lease.ack()
        assert await self.contents(transport, queue, 0) == []

    @case("T22")
    async def test_purging_drops_what_is_ready_or_delayed(self) -> None:
        """T22: so that what was scheduled can be called off; what is leased stays with its owner. The number is told.

        A transport that cannot count what is delayed does not drop it either.
        """
        transport = await self.connect()
        delay = 2 * self.quiet if "delayed" in transport.features.depth else 0.0
        need_delay(transport, delay)
        queue, other = await self.declare(transport), await self.declare(transport, "other")
        await transport.send(*sends(queue, ["held", "kept"]))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            held, kept = await self.receive_all(subscription, 2)
            await transport.send(*sends(queue, ["a", "b"], delay=delay), *sends(other, ["other"]))
            assert await transport.purge(queue) == 2
            await transport.send(*sends(queue, ["new"]))
            await held.nack()
            await kept.ack()
            await asyncio.sleep(2 * self.quiet + self.tolerance)
        assert await self.contents(transport, queue, 2) == [b"held", b"new"]
        assert await self.contents(transport, other, 1) == [b"other"]

    @case("T23")
    async def test_delayed_messages_are_counted_apart(self) -> None:
        """T23: not as ready before they are due, and as nothing else after, though nobody looks for them."""
        transport = await self.connect()
        need(transport.features.depth & {"ready", "delayed"}, "this transport counts neither of them exactly")
        need_delay(transport, 2 * self.lease)
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["now"]), *sends(queue, ["a", "b"], delay=2 * self.lease))
        await self.assert_depth(transport, queue, ready=1, leased=0, delayed=2)
        await asyncio.sleep(2 * self.lease + self.tolerance)
        await self.assert_depth(transport, queue, ready=3, leased=0, delayed=0)

    @case("T43")
    async def test_messages_that_were_kept_too_long_are_dropped(self) -> None:
        """T43: and not sooner, and never while somebody works on them."""
        transport = await self.connect()
        need(transport.features.retention, "this transport drops nothing for its age")
        retention = max(2 * self.lease, 4 * self.tolerance)
        queue = await self.declare(transport, retention=retention)
        await transport.send(*sends(queue, ["held", "old"]))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            held = await self.receive(subscription)
            await asyncio.sleep(retention / 2)
            await transport.send(*sends(queue, ["young"]))
            await asyncio.sleep(retention / 2 + self.tolerance)
            await self.assert_depth(transport, queue, ready=1, leased=1)
            await held.ack()
            assert (await self.receive(subscription)).message.body == b"young"
            await self.expect_nothing(subscription)

    @case("T43")
    async def test_what_is_delayed_for_longer_than_it_is_kept_comes_all_the_same(self) -> None:
        """T43: its time begins when it is due."""
        transport = await self.connect()
        need(transport.features.retention, "this transport drops nothing for its age")
        need_delay(transport, 2 * self.lease)
        queue = await self.declare(transport, retention=self.lease)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await transport.send(*sends(queue, ["later"], delay=2 * self.lease))
            await (await self.receive(subscription)).ack()
