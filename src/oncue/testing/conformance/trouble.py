"""Restarts, silence, and queues that go away under their consumers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError
from oncue.core.message import Send
from oncue.testing.conformance.suite import TransportCases, case, message, need, need_delay, now, sends
from oncue.transports.base import QueueSpec, Transport

_MANY = 300


class Trouble(TransportCases):
    """After any trouble the same connection works again, and whoever waited was told or goes on waiting rightly."""

    @case("T30")
    async def test_a_consumer_is_told_that_its_queue_was_deleted(self) -> None:
        """T30: with an error, soon, and not left waiting; its leases are lost."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["held"]))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            held = await self.receive(subscription)
            waiting = asyncio.ensure_future(self.receive(subscription))
            await asyncio.sleep(self.quiet)
            await other.delete(queue)
            with pytest.raises(QueueNotFoundError):
                await waiting
            with pytest.raises((LeaseLostError, QueueNotFoundError)):
                await held.ack()
            with pytest.raises(QueueNotFoundError):
                await self.receive(subscription)

    @case("T30")
    async def test_a_consumer_goes_on_when_its_queue_is_there_again(self) -> None:
        """T30: the same subscription; what it had of the old queue, or fetched ahead, settles nothing in the new one."""
        transport, other = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        await transport.send(*sends(queue, ["old", "older"]))
        async with transport.subscribe(queue, prefetch=4) as subscription:
            lease = await self.receive(subscription)
            await other.delete(queue)
            await other.declare(QueueSpec(name=queue))
            await other.send(*sends(queue, ["new"]))
            while lease.message.body != b"new":
                with pytest.raises((LeaseLostError, QueueNotFoundError)):
                    await lease.ack()
                try:
                    lease = await self.receive(subscription)
                except QueueNotFoundError:  # of the time when it was not there
                    await asyncio.sleep(self.quiet / 10)
            assert lease.attempt == 1
            await lease.ack()
            await self.expect_nothing(subscription)

    @case("T31")
    async def test_a_message_comes_after_a_long_silence(self) -> None:
        """T31: ten minutes where time is virtual; elsewhere as long as the hook `silence` says."""
        transport, sender = await self.connect(), await self.connect()
        queue = await self.declare(transport)
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for _ in range(2):
                await self.expect_nothing(subscription, seconds=600.0 if self.virtual_time else self.silence)
                await sender.send(*sends(queue, ["at last"]))
                await (await self.receive(subscription)).ack()

    @case("T28")
    async def test_messages_outlive_a_restart(self) -> None:
        """T28, T19: ready, leased or delayed ones."""
        transport = await self._restartable()
        need_delay(transport, 2 * self.lease)
        queue = await self.declare(transport, lease=self.lease)
        await transport.send(*sends(queue, ["leased", "ready"]))
        sent = now()
        await transport.send(*sends(queue, ["delayed"], delay=2 * self.lease))
        with suppress(ConnectionLostError):
            async with transport.subscribe(queue, prefetch=1) as subscription:
                await self.receive(subscription)
                await self.restart()
        after = await self.connect()
        await asyncio.sleep(max(0.0, sent + 2 * self.lease + self.tolerance - now()))
        assert await self.contents(after, queue, 3) == [b"delayed", b"leased", b"ready"]

    @case("T28", "T29")
    async def test_no_message_is_lost_when_the_store_restarts_while_messages_flow(self) -> None:
        """T28, T29: senders that repeat what was not confirmed, with the same id, and consumers that just call again."""
        transport, other = await self._restartable(), await self.connect()
        queue = await self.declare(transport, lease=self.lease)
        seen: Counter[str] = Counter()

        async def produce(start: int) -> None:
            for index in range(start, _MANY, 10):
                work = Send(queue, message(str(index)))
                while True:
                    try:
                        await other.send(work)
                        break
                    except ConnectionLostError:
                        await asyncio.sleep(0.01)

        async def consume() -> None:
            async with transport.subscribe(queue, prefetch=5) as subscription:
                while len(seen) < _MANY:
                    try:
                        lease = await subscription.receive()
                        seen[lease.message.body.decode()] += 1
                        await lease.ack()
                    except (ConnectionLostError, LeaseLostError):
                        await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(work) for work in (consume(), *(produce(start) for start in range(10)))]
        for _ in range(2):
            await asyncio.sleep(0.01)
            await self.restart()
        done, late = await asyncio.wait(tasks, timeout=self.soon)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()
        lost = {str(index) for index in range(_MANY)} - set(seen)
        assert not lost, f"{len(lost)} of {_MANY} messages were lost"

    async def _restartable(self) -> Transport:
        need(type(self).restart is not TransportCases.restart, "there is nothing to restart, or no hook that does it")
        transport = await self.connect()
        need(transport.features.durable, "messages of this transport do not outlive their process")
        return transport
