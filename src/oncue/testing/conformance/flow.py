"""How much a subscription holds, and what many consumers do to one queue."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from oncue.core.errors import InvalidValueError
from oncue.testing.conformance.suite import TransportCases, case, finish, need, sends
from oncue.transports.base import Lease, Transport

_EACH = 20
_FEW = 8
_SHARES = "consumers of this transport have a share of the queue each, and not whatever is next"


class Flow(TransportCases):
    """A subscription takes what it has room for, and goes on when there is room again."""

    @case("T35")
    async def test_no_more_than_prefetch_are_held_and_more_come_as_they_are_settled(self) -> None:
        """T35: however many ask at the same time; once all are settled it goes on, whatever way they were settled."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, [f"{index:02}" for index in range(20)]))
        async with transport.subscribe(queue, prefetch=5) as subscription:
            asking = [asyncio.ensure_future(subscription.receive()) for _ in range(10)]
            done, waiting = await asyncio.wait(asking, timeout=self.quiet)
            assert len(done) == 5
            held = [task.result() for task in done]
            await held[0].ack()
            done, waiting = await asyncio.wait(waiting, timeout=self.quiet)
            assert len(done) == 1
            await finish([*held[1:], done.pop().result()])
            done, waiting = await asyncio.wait(waiting, timeout=self.soon)
            assert not waiting, "it stopped though all was settled"
            await finish([task.result() for task in done])
            for _ in range(2):
                await finish(await self.receive_all(subscription, 5))
            await self.expect_nothing(subscription)

    @case("T35")
    async def test_a_message_whose_lease_ran_out_takes_up_no_room(self) -> None:
        """T35: a subscription that lost all its leases takes messages again."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["0", "1", "2", "3"]))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            await self.run_out(subscription, 2)
            for _ in range(2):
                await finish(await self.receive_all(subscription, 2))
            await self.expect_nothing(subscription)

    @case("T35")
    async def test_a_subscription_keeps_no_more_from_others_than_prefetch(self) -> None:
        """T35: what it fetched ahead and what it holds, taken together."""
        transport, other = await self.connect(), await self.connect()
        need(transport.features.competing, _SHARES)
        queue = await self.declare(transport)
        await transport.send(*sends(queue, [str(index) for index in range(20)]))
        async with transport.subscribe(queue, prefetch=3) as subscription, other.subscribe(queue, prefetch=20) as free:
            lease = await self.receive(subscription)
            others = await self.receive_all(free, 17)
            await finish([lease, *others])

    @case("T35")
    async def test_resize_changes_how_many_may_be_held(self) -> None:
        """T35: at once when it grows, also for one who waits already; when it shrinks, what is held stays held."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, [str(index) for index in range(10)]))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            held = [await self.receive(subscription)]
            waiting = asyncio.ensure_future(self.receive(subscription))
            await asyncio.wait([waiting], timeout=self.quiet)
            assert not waiting.done()
            subscription.resize(3)
            held += [await waiting, await self.receive(subscription)]
            await self.expect_nothing(subscription)
            subscription.resize(1)
            await held.pop().ack()
            await held.pop().ack()
            await self.expect_nothing(subscription)
            await held.pop().ack()
            await (await self.receive(subscription)).ack()

    @case("T35")
    async def test_what_does_not_fit_after_a_resize_goes_to_others(self) -> None:
        """T35: a subscription that shrinks gives back what it fetched ahead, uncounted where that is free."""
        transport, other = await self.connect(), await self.connect()
        need(transport.features.competing, _SHARES)
        queue = await self.declare(transport)
        await transport.send(*sends(queue, [str(index) for index in range(10)]))
        async with transport.subscribe(queue, prefetch=10) as subscription, other.subscribe(queue, prefetch=10) as free:
            lease = await self.receive(subscription)
            subscription.resize(1)
            others = await self.receive_all(free, 9)
            assert {each.attempt for each in others} == {1} or not transport.features.free_release
            await finish([lease, *others])

    @case("T35", "T44")
    async def test_room_for_less_than_one_message_is_refused(self) -> None:
        """T35, T44: when subscribing and when resizing."""
        transport = await self.connect()
        queue = await self.declare(transport)
        for prefetch in (0, -1):
            with pytest.raises(InvalidValueError):
                async with transport.subscribe(queue, prefetch=prefetch):
                    pass
        async with transport.subscribe(queue, prefetch=1) as subscription:
            with pytest.raises(InvalidValueError):
                subscription.resize(0)
            await transport.send(*sends(queue, ["work"]))
            await (await self.receive(subscription)).ack()

    @case("T36")
    async def test_random_refusals_by_many_consumers_lose_nothing_and_repeat_nothing(self) -> None:
        """T36: half of the attempts fail, consumers come and go, and each message is acknowledged exactly once."""
        connections = [await self.connect(), await self.connect()]
        queue = await self.declare(connections[0])
        wanted = [f"{index:03}" for index in range(200)]
        finished: Counter[str] = Counter()
        complete = asyncio.Event()
        chance = random.Random(36)

        async def settle(lease: Lease) -> None:
            await asyncio.sleep(0)
            if chance.random() < 0.5:
                await chance.choice((lease.nack, lease.release))()
                return
            await lease.ack()
            finished[lease.message.body.decode()] += 1
            if finished.total() >= len(wanted):
                complete.set()

        async def consume(transport: Transport) -> None:
            while True:
                async with transport.subscribe(queue, prefetch=chance.randint(1, _FEW)) as subscription:
                    for _ in range(_EACH):
                        await settle(await subscription.receive())

        async with self.running(*(consume(connections[index % 2]) for index in range(4))):
            for start in range(0, len(wanted), 50):
                await connections[0].send(*sends(queue, wanted[start : start + 50]))
            async with asyncio.timeout(3 * self.soon):
                await complete.wait()
            await asyncio.sleep(self.quiet)
        assert finished == Counter(wanted)
        await self.assert_depth(connections[1], queue, ready=0, leased=0, delayed=0)
