"""Words that the tests of this transport are written in, and processes that can be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from oncue.core.message import Message, Send
from oncue.transports.base import Lease, QueueSpec, Subscription, Transport
from oncue.transports.sqlite import open_sqlite

SOON = 20.0
"""Seconds that a test waits for what has to happen at once, before it fails."""

# A server that has everything loaded forks in milliseconds; the test's own process has threads and must not fork.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["transports.processes", "transports.sqlite.programs"])


def message(id: int | str, body: bytes = b"body", key: str | None = None) -> Message:
    return Message(body, str(id), key=key)


def sends(count: int, queue: str = "work", first: int = 0, body: bytes = b"body") -> list[Send]:
    return [Send(queue, message(number, body)) for number in range(first, first + count)]


@asynccontextmanager
async def opened(url: str, *queues: str, lease: float = 60.0, **options: Any) -> AsyncIterator[Transport]:
    """A transport with the queues declared, `work` unless others are named."""
    async with asyncio.timeout(50):
        transport = await open_sqlite(url, **options)
        try:
            for queue in queues or ("work",):
                await transport.declare(QueueSpec(name=queue, lease=lease))
            yield transport
        finally:
            await transport.close()


async def receive(subscription: Subscription, within: float = SOON) -> Lease:
    async with asyncio.timeout(within):
        return await subscription.receive()


async def take(transport: Transport, count: int, queue: str = "work") -> list[str]:
    """Receive and acknowledge `count` messages; their ids."""
    ids: list[str] = []

    async def one(subscription: Subscription) -> None:
        lease = await receive(subscription)
        ids.append(lease.message.id)
        await lease.ack()

    async with transport.subscribe(queue, prefetch=100) as subscription:
        for start in range(0, count, 200):
            await asyncio.gather(*(one(subscription) for _ in range(min(200, count - start))))
    return ids


async def ids_in(transport: Transport, queue: str = "work") -> list[str]:
    """The ids of all messages of a queue, whatever their state."""
    return [message.id for message in await transport.peek(queue, limit=1_000_000)]


async def depth(transport: Transport, queue: str = "work") -> tuple[int | None, int | None, int | None]:
    found = await transport.depth(queue)
    return found.ready, found.leased, found.delayed


async def eventually(holds: Callable[[], Awaitable[bool]], within: float = SOON) -> None:
    """Wait for something that only asking can tell."""
    until = time.monotonic() + within
    while not await holds():
        assert time.monotonic() < until, "it did not come to be"
        await asyncio.sleep(0.02)


def path_in(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@contextmanager
def raw(url: str) -> Iterator[sqlite3.Connection]:
    """A connection that knows nothing of queues."""
    connection = sqlite3.connect(path_in(url), isolation_level=None, check_same_thread=False)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody else from writing."""
    with raw(url) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def mounted(folder: Path, size: str = "2m") -> Iterator[None]:
    """A small file system of its own, where the system lets us."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Program:
    """A function of `programs` running in a process of its own, which talks over a pipe."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        self._talk, theirs = _processes.Pipe()
        self._process = _processes.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, word: Any) -> None:
        self._talk.send(word)

    def hear(self, within: float = SOON) -> Any:
        """What it says next. Blocks."""
        assert self._talk.poll(within), "the program said nothing"
        return self._talk.recv()

    def last_word(self, within: float = SOON) -> Any:
        """What it says next, or None if it ends without a word. Blocks."""
        assert self._talk.poll(within), "the program said nothing and goes on"
        try:
            return self._talk.recv()
        except EOFError:
            return None

    async def say(self) -> Any:
        return await asyncio.to_thread(self.hear)

    def rest(self) -> Iterator[Any]:
        """What it has said before it ended."""
        while self._talk.poll(0):
            try:
                yield self._talk.recv()
            except EOFError:
                return

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL; may be done twice."""
        with suppress(ProcessLookupError):
            if self._process.is_alive():
                self.signal(signal.SIGKILL)
        self._process.join()

    def end(self, within: float = SOON) -> None:
        """Wait until it ends by itself."""
        self._process.join(within)
        assert self._process.exitcode == 0, f"the program ended with {self._process.exitcode}"
