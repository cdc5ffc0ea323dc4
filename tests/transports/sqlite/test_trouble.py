"""What a store does when its file is busy, full, gone, or another one, and when its process forks or its loop ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transports.sqlite.support import (
    depth,
    eventually,
    ids_in,
    locked,
    message,
    mounted,
    opened,
    raw,
    receive,
    sends,
    take,
)

from oncue.core.errors import ConnectionLostError, LeaseLostError, StorageFullError
from oncue.core.message import Send
from oncue.transports.base import Lease, QueueSpec, Subscription, Transport
from oncue.transports.sqlite import open_sqlite

# Busy


async def test_a_file_that_another_process_keeps_for_a_second_is_waited_for(url: str) -> None:
    async with opened(url, "work", "next") as transport, transport.subscribe("work", prefetch=1) as subscription:
        await transport.send(*sends(1))
        lease = await receive(subscription)
        keeper = [
            sys.executable,
            "-c",
            "import sqlite3, sys, time\n"
            "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "connection.execute('BEGIN IMMEDIATE')\n"
            "print('kept', flush=True)\n"
            "time.sleep(1)\n"
            "connection.execute('COMMIT')",
            url.removeprefix("sqlite:///"),
        ]
        with subprocess.Popen(keeper, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            started = time.monotonic()
            await asyncio.gather(lease.ack(Send("next", lease.message)), transport.send(*sends(2, first=10)))
            assert 0.5 < time.monotonic() - started < 5
        assert await ids_in(transport, "next") == ["0"]
        assert await ids_in(transport) == ["10", "11"]


async def test_a_file_that_stays_busy_is_an_error_after_which_all_is_as_before(url: str) -> None:
    async with opened(url, "work", "next", busy=0.2) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            with locked(url):
                for asked in (
                    lambda: transport.send(*sends(1, first=5)),
                    lambda: lease.ack(Send("next", lease.message)),
                    lambda: lease.extend(60),
                    lambda: transport.declare(QueueSpec(name="other")),
                    lambda: transport.purge("work"),
                ):
                    with pytest.raises(ConnectionLostError, match="locked"):
                        await asked()
                assert await depth(transport) == (0, 1, 0), "questions are answered all the same"
            await lease.ack(Send("next", lease.message))
            assert await ids_in(transport) == []
            assert await ids_in(transport, "next") == ["0"]


async def test_opening_a_file_that_stays_busy_is_an_error(url: str) -> None:
    async with opened(url):
        await asyncio.sleep(0)
    with locked(url), pytest.raises(ConnectionLostError, match="locked"):
        await open_sqlite(url, busy=0.2)


async def test_a_question_that_somebody_asks_for_long_keeps_nobody_from_writing(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(10))
        with raw(url) as connection:
            asking = connection.execute("SELECT seq FROM oncue_messages")
            asking.fetchone()
            await transport.send(*sends(10, first=10))
            assert len(await take(transport, 20)) == 20
            asking.close()


# Full


async def test_a_full_disk_is_said_to_be_so_loses_nothing_and_all_goes_on_when_there_is_room(
    url: str, tmp_path: Path
) -> None:
    with mounted(tmp_path, "2m"):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(1_200_000))
        async with opened(url, "work", "next") as transport:
            stored = await send_until_full(transport)
            assert await ids_in(transport) == stored
            async with transport.subscribe("work", prefetch=1) as subscription:
                moved, held = await hop_until_full(subscription)
                ballast.unlink()
                last = held or await receive(subscription)
                await last.ack(Send("next", last.message))
                moved.append(last.message.id)
            await transport.send(Send("work", message("after", bytes(10_000))))
            assert sorted(await take(transport, len(stored) - len(moved) + 1)) == sorted({*stored, "after"} - {*moved})
            assert await ids_in(transport, "next") == moved


async def hop_until_full(subscription: Subscription) -> tuple[list[str], Lease | None]:
    """Hand messages on until there is no room for a lease or an acknowledgement; what was moved, and what is held."""
    moved: list[str] = []
    while True:
        held = None
        try:
            held = await receive(subscription)
            await held.ack(Send("next", held.message))
            moved.append(held.message.id)
        except StorageFullError:
            return moved, held


async def send_until_full(transport: Transport) -> list[str]:
    """Send large messages, then small ones, until there is no room for either; the ids of those that were stored."""
    stored = []
    for size in (10_000, 1):
        number = len(stored)
        try:
            while True:
                await transport.send(Send("work", message(number, bytes(size))))
                stored.append(str(number))
                number += 1
        except StorageFullError:
            continue
    return stored


IN_LITTLE_ROOM = """
import asyncio, resource, signal, sys
from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.sqlite import open_sqlite

async def main():
    transport = await open_sqlite(sys.argv[1])
    await transport.declare(QueueSpec(name="work"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    stored = 0
    try:
        while True:
            await transport.send(Send("work", Message(bytes(5000), str(stored))))
            stored += 1
    except ConnectionLostError:
        print(stored, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await transport.send(Send("work", Message(bytes(5000), str(stored))))
    print("on", (await transport.depth("work")).ready)
    await transport.close()

asyncio.run(main())
"""


async def test_a_file_that_may_not_grow_loses_nothing_and_all_goes_on_when_it_may(url: str) -> None:
    # SQLite does not tell a quota or a limit from other failures of writing; only a full disk has a code of its own.
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", IN_LITTLE_ROOM, url], check=True, capture_output=True, text=True
    )
    stored, on, ready = done.stdout.split()
    assert on == "on"
    assert int(ready) == int(stored) + 1 > 1


# Gone or replaced


async def test_a_file_that_was_removed_is_an_error_and_is_not_made_again(url: str, tmp_path: Path) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=2) as subscription:
            lease = await receive(subscription)
            for path in tmp_path.glob("queue.db*"):
                if path.is_file():
                    path.unlink()
            with pytest.raises(ConnectionLostError, match="removed or replaced"):
                await transport.send(*sends(1))
            for asked in (
                lambda: transport.send(*sends(1)),
                lambda: transport.depth("work"),
                lambda: transport.peek("work", limit=1),
                lease.ack,
                subscription.receive,
            ):
                with pytest.raises(ConnectionLostError):
                    await asked()
            assert not (tmp_path / "queue.db").exists()


async def test_a_file_that_was_replaced_by_another_store_is_used_as_that_one(url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    async with opened(other, "first", "work") as transport:
        await transport.send(Send("work", message("theirs")))
    async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        await transport.send(*sends(1))
        lease = await receive(subscription)
        waiting = asyncio.ensure_future(receive(subscription))
        await asyncio.sleep(0)
        for end in ("-wal", "-shm"):
            (tmp_path / f"queue.db{end}").unlink(missing_ok=True)
        (tmp_path / "other.db").rename(tmp_path / "queue.db")
        with pytest.raises(ConnectionLostError, match="removed or replaced"):
            await transport.send(*sends(1))
        with pytest.raises((LeaseLostError, ConnectionLostError)):
            await lease.ack()
        try:
            found = await waiting
        except ConnectionLostError:
            found = await receive(subscription)
        assert found.message.id == "theirs"
        await found.ack()
        assert await depth(transport) == (0, 0, 0)


async def test_a_queue_that_was_deleted_and_declared_again_is_consumed_on(url: str) -> None:
    async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
        await transport.send(*sends(1))
        lease = await receive(subscription)
        await transport.delete("work")
        await transport.declare(QueueSpec(name="work"))
        await transport.send(*sends(1, first=7))
        with pytest.raises(LeaseLostError):
            await lease.ack()
        assert (await receive(subscription)).message.id == "7"


# Forks, threads and loops


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_what_was_open_before_a_fork_is_refused_after_it_and_can_be_opened_anew(url: str) -> None:
    program = """
import asyncio, os, sys
from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.sqlite import open_sqlite

async def in_child(url):
    transport = await open_sqlite(url)
    await transport.send(Send("work", Message(b"", "child")))
    await transport.close()

async def main(url):
    transport = await open_sqlite(url)
    await transport.declare(QueueSpec(name="work"))
    send = transport.send
    busy = [asyncio.ensure_future(send(Send("work", Message(b"", str(n))))) for n in range(100)]
    await asyncio.sleep(0)
    children = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            return transport
        children.append(child)
        await asyncio.sleep(0.002)
    await asyncio.gather(*busy)
    codes = [os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1]) for child in children]
    await transport.send(Send("work", Message(b"", "parent")))
    print(codes, (await transport.depth("work")).ready)
    await transport.close()

def child(url, transport):
    try:
        asyncio.run(transport.send(Send("work", Message(b"", "wrong"))))
    except ConnectionLostError as error:
        asyncio.run(transport.close())
        asyncio.run(in_child(url))
        os._exit(0 if "forked" in str(error) else 2)
    os._exit(3)

loop = asyncio.new_event_loop()
transport = loop.run_until_complete(main(sys.argv[1]))
if transport is not None:
    asyncio.events._set_running_loop(None)
    child(sys.argv[1], transport)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, url],
        check=True,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout.split("\n")[0] == "[0, 0, 0, 0, 0] 106", done.stderr


def test_a_loop_that_ended_without_closing_leaves_its_messages_to_others_of_its_process(url: str) -> None:
    left = []

    async def leave_open() -> None:
        transport = await open_sqlite(url)
        await transport.declare(QueueSpec(name="work", lease=1.0))
        left.append(transport.subscribe("work", prefetch=10))
        subscription = await left[0].__aenter__()
        await transport.send(*sends(20))
        await receive(subscription)

    async def take_over() -> None:
        async with opened(url, lease=1.0) as transport:
            assert sorted(await take(transport, 20), key=int) == [str(number) for number in range(20)]
            await transport.send(*sends(20))
            assert len(await take(transport, 20)) == 20
            assert not [feed for feed in transport.port.writer._feeds if feed.active], (
                "nothing is claimed for a lost loop"
            )

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_open())
    loop.close()
    asyncio.run(take_over())


def test_many_loops_in_many_threads_share_one_file(url: str) -> None:
    came: list[str] = []

    async def work(first: int) -> None:
        async with opened(url) as transport:
            await asyncio.gather(*(transport.send(each) for each in sends(50, first=first)))
            came.extend(await take(transport, 50))

    threads = [threading.Thread(target=lambda first=n * 50: asyncio.run(work(first))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, came)) == list(range(300))


async def test_a_process_that_opens_and_closes_often_keeps_no_files_and_threads(url: str) -> None:
    async with opened(url):
        await asyncio.sleep(0)
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir())) if files.is_dir() else 0
    threads = set(threading.enumerate())
    for _ in range(20):
        async with opened(url) as transport, transport.subscribe("work", prefetch=1):
            await transport.send(*sends(1))
            await transport.depth("work")
    assert not [thread for thread in set(threading.enumerate()) - threads if "queue.db" in thread.name]
    if files.is_dir():
        assert len(list(files.iterdir())) <= before + 2
    await eventually(lambda: asyncio.sleep(0, not list(Path(url[10:]).parent.glob("*-wake/*"))))
