"""Acknowledging, giving back, and order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from oncue.core.errors import LeaseLostError, QueueNotFoundError
from oncue.core.message import Send
from oncue.testing.conformance.suite import EARLY, TransportCases, case, message, need, need_delay, now, refused, sends
from oncue.transports.base import Lease, Transport

Settle = Callable[[Lease], Coroutine[Any, Any, None]]


def _extend(lease: Lease) -> Coroutine[Any, Any, None]:
    return lease.extend(10)


def _ack(lease: Lease) -> Coroutine[Any, Any, None]:
    return lease.ack()


def _nack(lease: Lease) -> Coroutine[Any, Any, None]:
    return lease.nack()


def _release(lease: Lease) -> Coroutine[Any, Any, None]:
    return lease.release()


_WAYS: tuple[Settle, ...] = (_ack, _nack, _release, _extend)


class Settlement(TransportCases):
    """A lease is settled once, by its owner, in time; everything else is refused and changes nothing."""

    @case("T9")
    async def test_a_message_that_nobody_settles_comes_again_when_its_lease_ends(self) -> None:
        """T9: to whoever waits, not sooner than the lease allows, as the next attempt."""
        first, second = await self.connect(), await self.connect()
        queue = await self.declare(first, lease=self.lease)
        await first.send(Send(queue, message("work")))
        async with first.subscribe(queue, prefetch=1) as dying, second.subscribe(queue, prefetch=1) as other:
            lost = await self.receive(dying)
            began = now()
            again = await self.receive(dying, other, within=self.lease + self.tolerance)
            assert now() - began >= self.lease / 2 - EARLY
            assert (again.message.id, again.message.body) == (lost.message.id, b"work")
            assert (lost.attempt, again.attempt) == (1, 2)
            await again.ack()

    @case("T10")
    async def test_an_acknowledged_message_never_comes_again(self) -> None:
        """T10: not at once, not when its lease would have ended, not in another connection."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await (await self.receive(subscription)).ack()
            async with other.subscribe(queue, prefetch=1) as another:
                await self.expect_nothing(subscription, another, seconds=self.lease + self.tolerance)
        await self.assert_depth(other, queue, ready=0, leased=0, delayed=0)

    @case("T10")
    async def test_settling_twice_is_refused(self) -> None:
        """T10: whatever came first, and the second attempt changes nothing."""
        transport = await self.connect()
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for first in (_ack, _nack, _release):
                await transport.send(Send(queue, message("work")))
                lease = await self.receive(subscription)
                await first(lease)
                for second in _WAYS:
                    await refused(second(lease))
                if first is _ack:
                    await self.expect_nothing(subscription)
                else:
                    await (await self.receive(subscription)).ack()

    @case("T10", "T16")
    async def test_a_late_settle_never_touches_the_new_owners_delivery(self) -> None:
        """T10, T16: once a message is somebody else's, the former owner is refused, and the new one settles as ever."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        for late in _WAYS:
            await transport.send(Send(queue, message("work")))
            async with transport.subscribe(queue, prefetch=2) as subscription:
                old = await self.receive(subscription)
                new = await self.receive(subscription, within=self.lease + self.tolerance)
                assert new.attempt == 2
                await refused(late(old))
                await new.nack()
                last = await self.receive(subscription)
                assert last.attempt == 3
                await refused(late(new))
                await last.ack()
                await self.expect_nothing(subscription)

    @case("T10", "T16")
    async def test_a_late_settle_is_refused_even_if_nobody_took_over(self) -> None:
        """T10, T16: a lease is over when its time is, not when somebody else notices."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["0", "1", "2", "3"]))
        async with transport.subscribe(queue, prefetch=4) as subscription:
            leases = await self.receive_all(subscription, 4)
            await asyncio.sleep(self.lease + self.tolerance)
            for late, lease in zip(_WAYS, leases, strict=True):
                await refused(late(lease))
        assert await self.contents(transport, queue, 4) == [b"0", b"1", b"2", b"3"]

    @case("T11")
    async def test_a_nacked_message_comes_again_at_once(self) -> None:
        """T11: as the next attempt, with nothing else changed."""
        transport = await self.connect()
        queue = await self.declare(transport)
        sent = message("work", key="k")
        await transport.send(Send(queue, sent))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for attempt in (1, 2, 3):
                lease = await self.receive(subscription, within=self.tolerance)
                assert lease.attempt == attempt
                assert (lease.message.id, lease.message.body, lease.message.key) == (sent.id, b"work", "k")
                await lease.nack()

    @case("T11")
    async def test_a_message_nacked_with_a_delay_comes_no_sooner_than_asked(self) -> None:
        """T11: and no later than asked plus the tolerance."""
        transport = await self.connect()
        need_delay(transport, 2 * self.quiet)
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            delay, began = 2 * self.quiet, now()
            await lease.nack(delay=delay)
            again = await self.receive(subscription)
            assert delay - EARLY <= now() - began <= delay + self.tolerance
            assert again.attempt == 2
            await again.ack()

    @case("T41")
    async def test_a_cancelled_settlement_happens_or_does_not(self) -> None:
        """T41: whatever the moment, the message is gone or comes again; it is never left without an owner."""
        transport = await self.connect()
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for settle in (_ack, _nack, _release):
                for turns in range(6):
                    await transport.send(Send(queue, message("work")))
                    lease = await self.receive(subscription)
                    settling = asyncio.ensure_future(settle(lease))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    settling.cancel()
                    await asyncio.wait([settling])
                    with suppress(LeaseLostError):
                        await settle(lease)
                    if settle is not _ack:
                        await (await self.receive(subscription)).ack()
            await self.expect_nothing(subscription)

    @case("T13")
    async def test_acknowledgements_out_of_order_leave_exactly_the_others(self) -> None:
        """T13: a consumer that dies after acknowledging some in any order leaves the rest, and only the rest."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, [str(index) for index in range(10)]))
        async with transport.subscribe(queue, prefetch=10) as subscription:
            leases = await self.receive_all(subscription, 10)
            for lease in reversed(leases):
                if int(lease.message.body) % 3:
                    await lease.ack()
            left = []
            for _ in range(4):
                lease = await self.receive(subscription, within=self.lease + self.tolerance)
                left.append((int(lease.message.body), lease.attempt))
                await lease.ack()
            await self.expect_nothing(subscription, seconds=self.lease + self.tolerance)
        assert sorted(left) == [(0, 2), (3, 2), (6, 2), (9, 2)]

    @case("T14")
    async def test_messages_of_one_key_come_one_after_the_other(self) -> None:
        """T14: in a fifo queue the next one of a key waits until the one before is acknowledged; no key is one too."""
        transport = await self.connect()
        need(transport.features.fifo, "this transport keeps no order")
        queue = await self.declare(transport, fifo=True)
        for index in range(3):
            for key in ("a", "b", None):
                await transport.send(Send(queue, message(f"{key}{index}", key=key)))
        async with transport.subscribe(queue, prefetch=9) as subscription:
            for index in range(3):
                leases = await self.receive_all(subscription, 3)
                assert sorted(each.message.body for each in leases) == [
                    f"{key}{index}".encode() for key in ("None", "a", "b")
                ]
                await self.expect_nothing(subscription)
                for lease in leases:
                    await lease.ack()

    @case("T14")
    async def test_a_message_that_has_to_wait_holds_up_its_own_key_only(self) -> None:
        """T14: while one is delayed, released or lost with its consumer, those behind it stay behind it."""
        transport = await self.connect()
        need(transport.features.fifo, "this transport keeps no order")
        need_delay(transport, 2 * self.quiet)
        queue = await self.declare(transport, fifo=True, lease=self.lease)
        await transport.send(*sends(queue, ["a0", "a1", "a2"], key="a"), *sends(queue, ["b0"], key="b"))
        order = []
        async with transport.subscribe(queue, prefetch=4) as subscription:
            for lease in await self.receive_all(subscription, 2):
                order.append(lease.message.body)
                await (lease.nack(delay=2 * self.quiet) if lease.message.key == "a" else lease.ack())
            await self.expect_nothing(subscription, seconds=self.quiet)
            lease = await self.receive(subscription)
            order.append(lease.message.body)
            await lease.release()
            order.append((await self.receive(subscription)).message.body)  # and is lost with its consumer
            for _ in range(3):
                lease = await self.receive(subscription, within=self.lease + self.tolerance)
                order.append(lease.message.body)
                await lease.ack()
        assert sorted(order[:2]) == [b"a0", b"b0"]
        assert order[2:] == [b"a0", b"a0", b"a0", b"a1", b"a2"]

    @case("T14")
    async def test_order_holds_with_many_consumers(self) -> None:
        """T14: per key, in the order of sending, when several consumers race and some attempts fail."""
        connections = [await self.connect(), await self.connect()]
        need(connections[0].features.fifo, "this transport keeps no order")
        queue = await self.declare(connections[0], fifo=True)
        await connections[0].send(
            *(Send(queue, message(str(index), key=f"k{index % 5}")) for index in range(100)),
        )
        finished: dict[str | None, list[int]] = defaultdict(list)
        complete = asyncio.Event()

        async def consume(transport: Transport) -> None:
            async with transport.subscribe(queue, prefetch=4) as subscription:
                while True:
                    lease = await subscription.receive()
                    number = int(lease.message.body)
                    await asyncio.sleep(0)
                    if number % 7 == 0 and lease.attempt == 1:
                        await lease.nack()
                        continue
                    finished[lease.message.key].append(number)
                    await lease.ack()
                    if sum(map(len, finished.values())) == 100:
                        complete.set()

        async with self.running(*(consume(connections[index % 2]) for index in range(4))):
            async with asyncio.timeout(self.soon):
                await complete.wait()
        assert finished == {f"k{key}": list(range(key, 100, 5)) for key in range(5)}

    @case("T42")
    async def test_what_is_sent_with_an_acknowledgement_arrives(self) -> None:
        """T42: in other queues and in the message's own, at once or delayed."""
        transport = await self.connect()
        need_delay(transport, 2 * self.quiet)
        queue, other = await self.declare(transport), await self.declare(transport, "other")
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            began = now()
            await lease.ack(
                Send(queue, message("again")), Send(other, message("later"), 2 * self.quiet), *sends(other, ["now"])
            )
        async with transport.subscribe(other, prefetch=2) as subscription:
            arrived = [each.message.body for each in await self.receive_all(subscription, 2)]
        assert arrived == [b"now", b"later"]
        assert now() - began >= 2 * self.quiet - EARLY
        assert await self.contents(transport, queue, 1) == [b"again"]

    @case("T42")
    async def test_an_acknowledgement_whose_send_fails_leaves_the_lease(self) -> None:
        """T42: the message is still the caller's, who can settle it in another way."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            with pytest.raises(QueueNotFoundError):
                await lease.ack(Send(self.name("missing"), message("result")))
            await self.expect_nothing(subscription)
            await lease.extend(10)
            await lease.nack()
            again = await self.receive(subscription)
            assert again.attempt == 2
            await again.ack()

    @case("T42")
    async def test_an_atomic_acknowledgement_does_all_or_nothing(self) -> None:
        """T42: if one send fails none is stored, and an acknowledgement that comes too late sends nothing."""
        transport = await self.connect()
        need(transport.features.atomic_ack, "this transport sends first and then acknowledges, in two steps")
        queue, other = await self.declare(transport, lease=self.lease), await self.declare(transport, "other")
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            with pytest.raises(QueueNotFoundError):
                await lease.ack(*sends(other, ["stored?"]), Send(self.name("missing"), message("result")))
            await asyncio.sleep(self.lease + self.tolerance)
            await refused(lease.ack(*sends(other, ["late"])))
            again = await self.receive(subscription)
            await again.ack(*sends(other, ["result"]))
        assert await self.contents(transport, other, 1) == [b"result"]
