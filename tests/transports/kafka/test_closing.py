"""Closing comes to an end, whatever goes on meanwhile, and leaves nothing running."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from brokers.kafka_server import KafkaServer
from transports.kafka.support import opened
from transports.words import receive, sends

from oncue.core.errors import TransportClosedError, TransportError
from oncue.core.message import Message, Send
from oncue.transports.base import Transport
from oncue.transports.kafka import open_kafka

TIMEOUT = 2.0
LONGEST = 14.0
"""Seconds that closing may take at `TIMEOUT`: a goodbye, what is under way, and hanging up have their time one after the other."""


async def closed(transport: Transport, longest: float = LONGEST) -> None:
    began = time.monotonic()
    async with asyncio.timeout(60):
        await transport.close()
    took = time.monotonic() - began
    assert took < longest, f"closing took {took:.1f} s"


@asynccontextmanager
async def at_work(url: str) -> AsyncIterator[Transport]:
    """A transport of which everything is in use: held leases, sends and acknowledgements under way, and somebody who waits."""
    transport = await open_kafka(url)

    async def send() -> None:
        for number in itertools.count():
            try:
                await transport.send(*sends(1, first=number), Send("work", Message(b"", str(number)), 0.5))
            except TransportClosedError:
                return
            except TransportError:
                await asyncio.sleep(0.01)

    async def work() -> None:
        async with transport.subscribe("work", prefetch=5) as subscription:
            with suppress(TransportError):
                while True:
                    lease = await subscription.receive()
                    await lease.ack(*sends(1, "next"))

    async def hold() -> None:
        with suppress(TransportError):
            async with transport.subscribe("work", prefetch=3) as subscription:
                while True:
                    await subscription.receive()

    tasks = [asyncio.create_task(each()) for each in (send, work, hold)]
    try:
        yield transport
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() <= before, "a task is left over"


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 1.5])
async def test_closing_ends_at_each_moment_of_joining_and_working(url: str, after: float) -> None:
    async with nothing_left(), opened(url, "work", "next"), at_work(f"{url}&timeout={TIMEOUT}") as transport:
        await asyncio.sleep(after)
        await closed(transport)


async def test_closing_ends_while_partitions_are_shared_out_anew(url: str) -> None:
    async with nothing_left(), opened(url, "work", "next") as first:
        await first.send(*sends(100))
        async with first.subscribe("work", prefetch=4) as subscription:
            held = [await receive(subscription) for _ in range(4)]
            for after in (0.0, 0.1, 0.2, 0.3, 0.5):
                async with at_work(f"{url}&timeout={TIMEOUT}") as second:
                    await asyncio.sleep(after)
                    await closed(second)
            for lease in held:
                await lease.ack()


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_closing_ends_when_the_server_is_away(mortal: KafkaServer, how: str) -> None:
    url = f"{mortal.url}&session=4&timeout={TIMEOUT}"
    async with nothing_left(), opened(f"{mortal.url}&session=4", "work", "next"), at_work(url) as transport:
        await asyncio.sleep(1.0)
        if how == "killed":
            await asyncio.to_thread(mortal.kill)
        else:
            mortal.freeze()
        try:
            await asyncio.sleep(0.2)
            await closed(transport)
        finally:
            if how == "killed":
                await asyncio.to_thread(mortal.start)
            else:
                mortal.thaw()


async def test_closing_ends_while_joining_a_server_that_freezes(mortal: KafkaServer) -> None:
    url = f"{mortal.url}&session=4&timeout={TIMEOUT}"
    async with nothing_left(), opened(f"{mortal.url}&session=4", "work", "next"):
        transport = await open_kafka(url)
        async with transport.subscribe("work", prefetch=1) as subscription:
            waiting = asyncio.ensure_future(subscription.receive())
            await asyncio.sleep(0.02)
            mortal.freeze()
            try:
                await closed(transport)
            finally:
                mortal.thaw()
            with pytest.raises(TransportError):
                await waiting
