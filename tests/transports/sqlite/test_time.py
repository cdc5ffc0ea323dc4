"""The two clocks: what follows the wall clock, what does not, and what a restart of the machine means."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path

import pytest
from transports.sqlite.support import depth, message, opened, raw, receive, sends, take

from oncue.core.errors import LeaseLostError
from oncue.core.message import Send
from oncue.transports.base import QueueSpec
from oncue.transports.sqlite import clock
from oncue.transports.sqlite.schema import READY, open_store
from oncue.transports.sqlite.store import Change, Claim, Holding, Row, Store

HOUR = 3_600_000_000


@pytest.fixture
def step_clock(monkeypatch):
    """Sets the wall clock of everything that reads it through `clock.wall`, as `date` would."""

    def step(hours: float) -> None:
        for module in ("batch", "reader", "transport", "upkeep", "writer"):
            monkeypatch.setattr(
                f"oncue.transports.sqlite.{module}.wall", lambda: time.time_ns() // 1000 + round(hours * HOUR)
            )

    return step


def test_the_steady_clock_goes_on_alike_for_all_and_the_wall_clock_is_the_time_of_day() -> None:
    first = clock.steady()
    assert 0 <= clock.steady() - first < HOUR
    assert abs(first - clock.ORIGIN - time.monotonic_ns() // 1000) < HOUR
    assert abs(clock.wall() / 1e6 - time.time()) < 60


def test_the_present_run_of_the_machine_has_a_name() -> None:
    name = clock.boot_id()
    assert name == clock.boot_id()
    if sys.platform == "linux":
        assert re.fullmatch(r"[0-9a-f-]{36}", name)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_stepped_wall_clock_does_not_touch_leases(url: str, step_clock, hours: int) -> None:
    async with opened(url, lease=30.0) as transport, transport.subscribe("work", prefetch=2) as subscription:
        await transport.send(*sends(2))
        first, second = await receive(subscription), await receive(subscription)
        step_clock(hours)
        assert await depth(transport) == (0, 2, 0)
        async with transport.subscribe("work", prefetch=2) as other:
            with pytest.raises(TimeoutError):
                await receive(other, within=0.3)
        await first.extend(30)
        await first.ack()
        await second.ack()
        assert await depth(transport) == (0, 0, 0)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_lease_runs_out_when_it_should_after_a_step_of_the_wall_clock(url: str, step_clock, hours: int) -> None:
    async with opened(url, lease=0.5) as transport, transport.subscribe("work", prefetch=1) as subscription:
        await transport.send(*sends(1))
        lease = await receive(subscription)
        started = time.monotonic()
        step_clock(hours)
        again = await receive(subscription)
        assert again.attempt == 2
        assert time.monotonic() - started < 5
        with pytest.raises(LeaseLostError):
            await lease.ack()


def test_a_lease_that_ran_out_settles_nothing_though_nobody_has_taken_the_message(tmp_path: Path) -> None:
    connection = open_store(tmp_path / "queue.db")
    store = Store(connection)
    with store.transaction():
        store.add_queue(QueueSpec(name="work"))
        store.refresh_queues()
        store.insert([Row("work", 0, None, '["0",null,{}]', b"")], clock.wall())
        now = clock.steady()
        _, [taken] = store.take(store.queue("work"), Claim(1, 100, True, now + HOUR, 7), clock.wall(), now)
    holding, change = Holding(taken.seq, 7), Change(taken.seq, 7, READY, clock.ORIGIN, 0)
    with store.transaction():
        assert store.held([holding], now + HOUR) == set()
        assert store.remove([holding], now + HOUR) == 0
        assert store.change([change], now + HOUR) == 0
        assert store.held([holding], now + HOUR - 1) == {holding}
        assert store.change([change], now + HOUR - 1) == 1
    connection.close()


async def test_delays_follow_the_wall_clock(url: str, step_clock) -> None:
    async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        await transport.send(Send("work", message("later"), delay=3000))
        assert await depth(transport) == (0, 0, 1)
        step_clock(1)
        assert await depth(transport) == (1, 0, 0)
        assert (await receive(subscription)).message.id == "later"


async def test_a_restart_of_the_machine_frees_all_leases_and_keeps_delays(url: str, monkeypatch) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(3), Send("work", message("later"), delay=3000))
        subscription = transport.subscribe("work", prefetch=10)
        held = await subscription.__aenter__()
        assert [(await receive(held)).attempt for _ in range(3)] == [1, 1, 1]
        with raw(url) as connection:  # what the file is when the machine loses its power now
            content = "\n".join(connection.iterdump())
            pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
        await subscription.__aexit__(None, None, None)
    after = f"{url}.after"
    with raw(after) as connection:
        connection.executescript(content)
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name} = {value}")
    async with opened(after) as transport:
        assert await depth(transport) == (0, 3, 1), "not while the machine runs"
    monkeypatch.setattr(clock, "boot_id", lambda: "another run")
    async with opened(after) as transport:
        assert await depth(transport) == (3, 0, 1)
        async with transport.subscribe("work", prefetch=3) as subscription:
            assert [(await receive(subscription)).attempt for _ in range(3)] == [2, 2, 2]


PRAGMAS = ("application_id", "user_version")


async def test_where_runs_of_the_machine_have_no_names_a_steady_clock_that_went_back_tells(
    url: str, monkeypatch
) -> None:
    monkeypatch.setattr(clock, "boot_id", lambda: "")
    async with opened(url) as transport:
        await transport.send(*sends(1))
        manager = transport.subscribe("work", prefetch=10)
        await receive(await manager.__aenter__())
        with raw(url) as connection:
            content = "\n".join(connection.iterdump())
            pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
        await manager.__aexit__(None, None, None)
    after = f"{url}.after"
    with raw(after) as connection:
        connection.executescript(content)
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name} = {value}")
    async with opened(after) as transport:
        assert await depth(transport) == (0, 1, 0)
    steady = clock.steady
    monkeypatch.setattr(clock, "steady", lambda: steady() - 3 * HOUR)
    async with opened(after) as transport:
        assert await take(transport, 1) == ["0"]


async def test_a_message_is_gone_when_its_retention_is_over_and_not_before(url: str, step_clock, monkeypatch) -> None:
    monkeypatch.setattr("oncue.transports.sqlite.upkeep._REST", 0.05)
    async with opened(url, "other") as transport:
        await transport.declare(QueueSpec(name="short", retention=1800.0))
        await transport.declare(QueueSpec(name="long", retention=7200.0))
        await transport.send(*sends(5, "short"), *sends(5, "long"), *sends(5, "other"))
        await transport.send(Send("short", message("due", b""), delay=3000))
        step_clock(1)
        assert await depth(transport, "short") == (1, 0, 0)
        assert await depth(transport, "long") == (5, 0, 0)
        async with transport.subscribe("short", prefetch=10) as subscription:
            assert (await receive(subscription)).message.id == "due"
            with pytest.raises(TimeoutError):
                await receive(subscription, within=0.2)
        step_clock(3)
        with raw(url) as connection:
            async with asyncio.timeout(20):  # nobody consumes, and they go all the same
                while connection.execute("SELECT count(*) FROM oncue_messages").fetchone() != (5,):
                    await transport.send(*sends(1, "other"))
                    await take(transport, 1, "other")
                    await asyncio.sleep(0.1)
        assert await depth(transport, "other") == (5, 0, 0)
