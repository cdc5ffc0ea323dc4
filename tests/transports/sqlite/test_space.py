"""How much is there, and how much room it takes: depths are right in every state, and a file gives its space back."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from transports.sqlite.support import depth, ids_in, message, opened, path_in, raw, receive, sends, take

from oncue.core.errors import LeaseLostError
from oncue.core.message import Send
from oncue.transports.base import QueueSpec, Transport


async def counted(transport: Transport, url: str) -> None:
    """What the transport says is what a count of the rows says."""
    with raw(url) as connection:
        rows = connection.execute(
            "SELECT q.name, q.messages, count(m.seq) FROM oncue_queues AS q "
            "LEFT JOIN oncue_messages AS m ON m.queue = q.id GROUP BY q.id"
        ).fetchall()
    for name, said, count in rows:
        assert said == count, name
        assert sum(part or 0 for part in await depth(transport, name)) == count, name


@pytest.mark.parametrize("fifo", [False, True], ids=["plain", "fifo"])
async def test_depths_are_right_whatever_was_done(url: str, fifo: bool) -> None:
    chance = random.Random(7)
    async with opened(url, "next") as transport:
        await transport.declare(QueueSpec(name="work", fifo=fifo, lease=600))
        settle = [
            lambda lease: lease.ack(),
            lambda lease: lease.ack(Send("next", lease.message), Send("work", lease.message)),
            lambda lease: lease.nack(),
            lambda lease: lease.nack(delay=3000),
            lambda lease: lease.release(),
            lambda lease: lease.extend(600),
        ]
        async with transport.subscribe("work", prefetch=8) as subscription:
            for number in range(60):
                key = chance.choice(["a", "b", "c", *map(str, range(20))])
                await transport.send(Send("work", message(number, key=key), delay=chance.choice([0, 0, 3000])))
                if number % 2:
                    await settle[number // 2 % 6](await receive(subscription))
                    await counted(transport, url)
        await counted(transport, url)
        assert await transport.purge("work") > 0
        await counted(transport, url)
        await transport.delete("next")
        await counted(transport, url)


async def test_a_lease_that_ran_out_counts_as_ready(url: str) -> None:
    async with opened(url, lease=0.3) as transport:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=2) as subscription:
            leases = [await receive(subscription), await receive(subscription)]
            assert await depth(transport) in ((1, 2, 0), (3, 0, 0))
            await asyncio.sleep(0.35)
            with pytest.raises(LeaseLostError):
                await leases[0].ack()
        assert await depth(transport) == (3, 0, 0)


async def test_a_purge_drops_what_waits_and_leaves_what_is_leased(url: str) -> None:
    async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        await transport.send(*sends(25_000))
        await transport.send(Send("work", message("later"), delay=60))
        lease = await receive(subscription)
        assert await transport.purge("work") == 25_000
        assert await depth(transport) == (0, 1, 0)
        await lease.ack()
        assert await ids_in(transport) == []


async def test_the_file_shrinks_after_a_large_backlog_has_gone(url: str, monkeypatch) -> None:
    for name, value in (("_REST", 0.05), ("_WORK", 0.05)):
        monkeypatch.setattr(f"oncue.transports.sqlite.upkeep.{name}", value)
    path = path_in(url)
    async with opened(url) as transport:
        await transport.send(*sends(20_000, body=bytes(1000)))
        async with asyncio.timeout(20):
            while size(path, "-wal"):
                await asyncio.sleep(0.02)
        full = size(path)
        assert full > 20_000_000
        assert len(await take(transport, 20_000)) == 20_000
        async with asyncio.timeout(20):  # by itself, at rest
            while size(path) > full / 10 or size(path, "-wal"):
                await asyncio.sleep(0.02)
        await transport.send(*sends(10))
        assert len(await take(transport, 10)) == 10
    assert size(path, "-wal") == 0


def size(path: Path, end: str = "") -> int:
    beside = path.with_name(f"{path.name}{end}")
    return beside.stat().st_size if beside.exists() else 0


async def test_a_large_body_comes_as_it_was_sent(url: str) -> None:
    large, small = random.Random(3).randbytes(20_000_000), random.Random(4).randbytes(8193)
    async with opened(url) as transport, transport.subscribe("work", prefetch=10) as subscription:
        await transport.send(*(Send("work", message(n, body)) for n, body in enumerate([large, small, large, b""])))
        for body in (large, small, large, b""):
            lease = await receive(subscription)
            assert lease.message.body == body
            await lease.ack()
