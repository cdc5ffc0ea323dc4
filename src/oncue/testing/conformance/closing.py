"""What is left behind when a subscription or a connection is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from oncue.core.errors import OnCueError, TransportClosedError
from oncue.core.message import Send
from oncue.testing.conformance.suite import TransportCases, case, finish, message, sends
from oncue.transports.base import Lease, QueueSpec, Subscription, Transport

_THOUSANDS = 3000


class Closing(TransportCases):
    """Closing gives back what is held, finishes or reports what was asked, and leaves nothing running."""

    @case("T34")
    async def test_a_closed_subscription_releases_what_it_held(self) -> None:
        """T34: thousands of leases at once, and what was fetched ahead; uncounted where that is free."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        for start in range(0, _THOUSANDS, 500):
            await transport.send(*sends(queue, [str(index) for index in range(start, start + 500)]))
        async with transport.subscribe(queue, prefetch=_THOUSANDS) as subscription:
            held = await self.receive_all(subscription, _THOUSANDS * 2 // 3)
        async with other.subscribe(queue, prefetch=_THOUSANDS) as subscription:
            leases = await self.receive_all(subscription, _THOUSANDS)
            assert {lease.attempt for lease in leases} == {1} or not transport.features.free_release
            assert {int(lease.message.body) for lease in leases} == set(range(_THOUSANDS))
            await self._refused(held[0])
            await finish(leases)
            await self.expect_nothing(subscription)

    @case("T34")
    async def test_a_subscription_that_ends_with_an_error_releases_what_it_held(self) -> None:
        """T34: also when the one who holds it is cancelled."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        holding = asyncio.Event()

        async def hold() -> None:
            async with transport.subscribe(queue, prefetch=2) as subscription:
                await self.receive_all(subscription, 2)
                holding.set()
                await asyncio.sleep(self.patience)

        async def fail() -> None:
            async with transport.subscribe(queue, prefetch=2) as subscription:
                await self.receive_all(subscription, 2)
                raise LookupError

        await transport.send(*sends(queue, ["0", "1"]))
        holder = asyncio.create_task(hold())
        await holding.wait()
        holder.cancel()
        await asyncio.wait([holder])
        with pytest.raises(LookupError):
            await fail()
        assert await self.contents(other, queue, 2) == [b"0", b"1"]

    @case("T34")
    async def test_a_closed_connection_releases_what_its_subscriptions_held(self) -> None:
        """T34: before `close` returns; whoever waits there is told, and other connections go on."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["0", "1"]))
        async with other.subscribe(queue, prefetch=9) as others, transport.subscribe(queue, prefetch=3) as subscription:
            held = await self.receive_all(subscription, 2)
            waiting = asyncio.ensure_future(self.receive(subscription))
            await asyncio.sleep(0)
            await transport.close()
            with pytest.raises(TransportClosedError):
                await waiting
            await self._refused(held[0])
            again = await self.receive_all(others, 2)
            assert {lease.attempt for lease in again} == {1} or not transport.features.free_release
            await finish(again)

    @case("T33")
    async def test_many_may_close_a_connection_at_the_same_time(self) -> None:
        """T33: and once more after that; nothing hangs, and no task is left."""
        before = asyncio.all_tasks()
        transport = await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["0"]))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            await self.receive(subscription)
            async with asyncio.timeout(self.soon):
                await asyncio.gather(*(transport.close() for _ in range(100)))
        await transport.close()
        await asyncio.sleep(self.quiet)
        assert asyncio.all_tasks() <= before, "a task is left over"

    @case("T33", "T44")
    async def test_everything_is_refused_after_close(self) -> None:
        """T33, T44: with an error that says so, and without an effect."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["0"]))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await self.receive(subscription)
            await transport.close()
            for ask in self._all_of(transport, queue, subscription, lease):
                with pytest.raises(TransportClosedError):
                    await ask()
        assert await self.contents(other, queue, 1) == [b"0"]

    @case("T32")
    async def test_close_finishes_or_reports_what_was_asked_before(self) -> None:
        """T32: a send that returned is stored, and one that was refused as closed is not."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        for turns in range(6):
            bodies = [f"{index:03}" for index in range(100)]
            sender = await self.connect()
            sending = [asyncio.ensure_future(sender.send(Send(queue, message(body)))) for body in bodies]
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(self.soon):
                await sender.close()
                results = await asyncio.gather(*sending, return_exceptions=True)
            assert all(result is None or isinstance(result, TransportClosedError) for result in results)
            stored = [body.encode() for body, result in zip(bodies, results, strict=True) if result is None]
            assert await self.contents(other, queue, len(stored)) == stored

    @staticmethod
    async def _refused(lease: Lease) -> None:
        with pytest.raises(OnCueError):
            await lease.ack()

    @staticmethod
    def _all_of(
        transport: Transport, queue: str, subscription: Subscription, lease: Lease
    ) -> list[Callable[[], Awaitable[object]]]:
        async def subscribe() -> None:
            async with transport.subscribe(queue, prefetch=1):
                pass

        return [
            lambda: transport.declare(QueueSpec(name=queue)),
            lambda: transport.delete(queue),
            transport.queues,
            lambda: transport.send(Send(queue, message("late"))),
            subscribe,
            lambda: transport.peek(queue, limit=1),
            lambda: transport.depth(queue),
            lambda: transport.purge(queue),
            subscription.receive,
            lease.ack,
            lease.nack,
            lease.release,
            lambda: lease.extend(10),
        ]
