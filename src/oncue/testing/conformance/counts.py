"""Which attempts count, and what becomes of messages that end their consumers."""

from __future__ import annotations

from oncue.core.message import Send
from oncue.testing.conformance.suite import LONG_LEASE, TransportCases, case, finish, longest, message, need, sends


class Counts(TransportCases):
    """An attempt counts when a message was handed out and not given back; who ends its consumers takes none along."""

    @case("T24")
    async def test_a_lease_that_runs_out_counts_as_an_attempt(self) -> None:
        """T24: for each message that a dead consumer held, each time, and for no other."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["0", "1", "2", "3"]))
        async with transport.subscribe(queue, prefetch=4) as subscription:
            await self.run_out(subscription, 4)
            leases = await self.receive_all(subscription, 4)
            assert sorted((each.message.body, each.attempt) for each in leases) == [
                (str(index).encode(), 2) for index in range(4)
            ]

    @case("T24")
    async def test_a_released_message_comes_again_uncounted(self) -> None:
        """T24: at once, as often as it is released; what was counted before stays counted."""
        transport = await self.connect()
        need(transport.features.free_release, "this transport counts what is released")
        queue = await self.declare(transport)
        await transport.send(Send(queue, message("work")))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for attempt in (1, 1, 1):
                lease = await self.receive(subscription, within=self.tolerance)
                assert lease.attempt == attempt
                await lease.release()
            await (await self.receive(subscription)).nack()
            for attempt in (2, 2):
                lease = await self.receive(subscription)
                assert lease.attempt == attempt
                await lease.release()

    @case("T24")
    async def test_a_released_message_comes_again_at_once(self) -> None:
        """T24: unchanged, also where releasing counts as an attempt."""
        transport = await self.connect()
        queue = await self.declare(transport)
        sent = message("work", key="k")
        await transport.send(Send(queue, sent))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await (await self.receive(subscription)).release()
            again = await self.receive(subscription, within=self.tolerance)
            assert (again.message.id, again.message.body, again.message.key) == (sent.id, b"work", "k")
            await again.ack()
            await self.expect_nothing(subscription)

    @case("T24")
    async def test_attempts_are_counted_for_each_message_alone(self) -> None:
        """T24: also for two messages with one id, and from 1 again for one that is sent again."""
        transport = await self.connect()
        queue = await self.declare(transport)
        twin = message("twin")
        await transport.send(Send(queue, twin), Send(queue, twin))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            first, second = await self.receive_all(subscription, 2)
            assert (first.attempt, second.attempt) == (1, 1)
            await first.ack()
            await second.nack()
            again = await self.receive(subscription)
            assert again.attempt == 2
            await again.ack(Send(queue, twin))
            new = await self.receive(subscription)
            assert new.attempt == 1
            await new.ack()
            await self.expect_nothing(subscription)

    @case("T25")
    async def test_a_message_whose_leases_ran_out_twice_is_handed_out_alone(self) -> None:
        """T25: at most one such message is held at a time; others go along, and lose nothing when it strikes again."""
        transport = await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["suspect 0", "suspect 1", "suspect 2"]))
        for _ in range(2):
            async with transport.subscribe(queue, prefetch=3) as subscription:
                await self.run_out(subscription, 3)
        await transport.send(*sends(queue, ["a", "b"]))
        async with transport.subscribe(queue, prefetch=9) as subscription:
            for count in range(3):
                leases = await self.receive_all(subscription, 1 if count else 3)
                suspects = [lease for lease in leases if lease.message.body.startswith(b"suspect")]
                assert [lease.attempt for lease in suspects] == [3], "not one suspect at a time"
                for lease in leases:
                    await lease.extend(longest(transport, LONG_LEASE))
                await self.expect_nothing(subscription)
                await finish(leases)
            await self.expect_nothing(subscription)

    @case("T25")
    async def test_a_message_that_failed_often_is_no_suspect(self) -> None:
        """T25: whoever gave a message back has lived, so such messages are handed out together."""
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["a", "b", "c"]))
        async with transport.subscribe(queue, prefetch=3) as subscription:
            for attempt in range(1, 5):
                leases = await self.receive_all(subscription, 3)
                assert [lease.attempt for lease in leases] == [attempt] * 3
                for lease in leases:
                    await lease.nack()
