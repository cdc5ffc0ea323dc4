"""Many processes on one file, and how soon they hear of each other's messages."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from transports import processes
from transports.sqlite import programs
from transports.sqlite.support import Program, depth, eventually, message, opened, receive, sends

from oncue.core.message import Send

SHARE = 250


async def test_eight_processes_on_one_file_lose_and_double_nothing(url: str) -> None:
    workers = [Program(programs.one_of_many, url, number * SHARE, SHARE, 8 * SHARE) for number in range(8)]
    try:
        for word in ("ready", "sent"):
            for worker in workers:
                assert await worker.say() == word
            if word == "ready":
                for worker in workers:
                    worker.tell("go")
        async with opened(url, lease=120.0) as transport:
            await eventually(lambda: empty(transport))
        for worker in workers:
            worker.tell("stop")
        came = [id for worker in workers for id in await worker.say()]
        for worker in workers:
            worker.end()
    finally:
        for worker in workers:
            worker.kill()
    assert sorted(map(int, came)) == list(range(8 * SHARE))


async def empty(transport) -> bool:
    return await depth(transport) == (0, 0, 0)


async def test_an_idle_consumer_of_this_process_is_woken_at_once(url: str) -> None:
    async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        took = []
        for number in range(10):
            waiting = asyncio.ensure_future(receive(subscription))
            await asyncio.sleep(0.05)
            started = time.monotonic()
            await transport.send(*sends(1, first=number))
            lease = await waiting
            took.append(time.monotonic() - started)
            await lease.ack()
    assert statistics.median(took) < 0.1


async def test_an_idle_consumer_of_another_process_is_woken_at_once_and_does_not_poll(url: str) -> None:
    async with opened(url) as transport:
        with Program(programs.listener, url) as program:
            await program.say()
            took, used = [], []
            for number in range(10):
                await asyncio.sleep(0.2)
                started = time.monotonic()
                await transport.send(*sends(1, first=number))
                came, spent = await program.say()
                took.append(came - started)
                used.append(spent)
    # A consumer that only looked once a second would take half of one.
    assert statistics.median(took) < 0.1
    assert statistics.median(used) < 0.05, "of 200 ms"


async def test_a_delayed_message_comes_when_it_is_due_though_nothing_else_happens(url: str) -> None:
    async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        started = time.monotonic()
        await transport.send(Send("work", message("late"), delay=0.3))
        await (await receive(subscription)).ack()
        assert 0.29 < time.monotonic() - started < 1.5


async def test_a_lease_that_runs_out_in_another_process_is_noticed_though_nothing_else_happens(url: str) -> None:
    async with opened(url, "work", "next", lease=1.0) as transport:
        await transport.send(*sends(1))
        with Program(processes.holder, url) as program:
            await program.say()
            async with transport.subscribe("work", prefetch=1) as subscription:
                lease = await receive(subscription)
                assert lease.attempt == 2
                await lease.ack()


async def test_consumers_that_cannot_be_rung_look_by_themselves(url: str, tmp_path: Path) -> None:
    (tmp_path / "queue.db-wake").touch()  # in the way of the folder of bells
    async with opened(url) as transport:
        with Program(programs.listener, url) as program:
            await program.say()
            started = time.monotonic()
            await transport.send(*sends(1))
            came, _ = await program.say()
            assert came - started < 5


async def test_a_consumer_in_a_long_path_is_woken_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/{'long' * 40}/queue.db"
    async with opened(url) as transport:
        with Program(programs.listener, url) as program:
            await program.say()
            took = []
            for number in range(5):
                await asyncio.sleep(0.05)
                started = time.monotonic()
                await transport.send(*sends(1, first=number))
                took.append((await program.say())[0] - started)
    assert statistics.median(took) < 0.1
