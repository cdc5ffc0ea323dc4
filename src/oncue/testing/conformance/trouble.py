"""Restarts, silence, and queues that go away under their consumers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
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
                silence = 600.0 if self.virtual_time else self.silence
                waiting = asyncio.ensure_future(self.receive(subscription, within=silence + self.soon))
                await asyncio.sleep(silence)
                assert not waiting.done(), "a message came that nobody sent"
                await sender.send(*sends(queue, ["at last"]))
                await (await waiting).ack()

    @case("T19", "T28")
    async def test_messages_outlive_a_restart(self) -> None:
        """T19, T28: ready, leased or delayed ones."""
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
        seen: set[int] = set()

        async def produce(numbers: Iterable[int]) -> None:
            for number in numbers:
                work = Send(queue, message(str(number)))
                while True:
                    try:
                        await other.send(work)
                        break
                    except ConnectionLostError:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.002)

        async def consume(until: int) -> None:
            while len(seen) < until:
                try:
                    lease = await subscription.receive()
                    seen.add(int(lease.message.body))
                    await asyncio.sleep(0.001)  # behind the senders, so that there is work when it restarts
                    await lease.ack()
                except (ConnectionLostError, LeaseLostError):
                    await asyncio.sleep(0.01)

        async with transport.subscribe(queue, prefetch=5) as subscription:
            tasks = [asyncio.create_task(produce(range(start, _MANY, 10))) for start in range(10)]
            tasks.append(asyncio.create_task(consume(_MANY)))
            for _ in range(2):
                await asyncio.sleep(0.01)
                await self.restart()
            await self._all_done(tasks)
            assert seen == set(range(_MANY)), f"{_MANY - len(seen)} of {_MANY} messages were lost"

            tasks = [asyncio.create_task(consume(_MANY + 1))]
            await asyncio.sleep(self.quiet)
            await self.restart()
            await produce([_MANY])
            await self._all_done(tasks)
            assert _MANY in seen, "whoever waited when it restarted waits for ever"

    async def _all_done(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Wait as long as may be, and end what is not done by then."""
        done, late = await asyncio.wait(tasks, timeout=self.soon)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()

    async def _restartable(self) -> Transport:
        need(type(self).restart is not TransportCases.restart, "there is nothing to restart, or no hook that does it")
        transport = await self.connect()
        need(transport.features.durable, "messages of this transport do not outlive their process")
        return transport
