"""The transport itself, and the one writer and reader that all transports on one file share in a process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from oncue.core.errors import (
    ConnectionLostError,
    QueueNotFoundError,
    TransportClosedError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_equal, check_spec
from oncue.transports.sqlite.clock import wall
from oncue.transports.sqlite.feed import Kind, Port, Request
from oncue.transports.sqlite.file import BUSY, path_of, place_of, prepare
from oncue.transports.sqlite.forks import free_inherited, opening, watch
from oncue.transports.sqlite.reader import Reader
from oncue.transports.sqlite.store import Queue, Store
from oncue.transports.sqlite.subscription import MAX_BODY, SQLiteSubscription, rows_of
from oncue.transports.sqlite.writer import Writer

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=True,
    free_release=True,
    native_delay=True,
    longest_delay=None,
    fifo=True,
    lease_cap=None,
    max_body=MAX_BODY,
    headers=True,
    depth=frozenset({"ready", "leased", "delayed"}),
    peek=True,
    retention=True,
)


class _Opened:
    """A file that is open in this process, and by how many transports."""

    def __init__(self, path: Path, busy: float) -> None:
        self.writer = Writer(path, busy)
        self.reader = Reader(path)
        self.users = 0
        watch(self.writer)
        watch(self.reader)


# One writer for each file: group commit is as good as the number of those who share it.
_opened: dict[tuple[int, int], _Opened] = {}


async def open_sqlite(url: str, *, busy: float = BUSY) -> SQLiteTransport:
    """Open the store in the file that `url` names (`sqlite:///relative.db`, `sqlite:////absolute.db`), made if it is missing.

    busy: how many seconds other processes may keep the file to themselves before that is an error; what the first transport
    of a process on this file says holds for all.
    Raise `InvalidValueError` for another URL, `AccessDeniedError` for a file or folder that may not be written, and
    `IncompatibleStoreError` for a file that is no store of this version or lies where SQLite cannot lock.
    """
    path = path_of(url)
    opening = asyncio.ensure_future(asyncio.to_thread(_acquire, path, busy))
    try:
        place, opened = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_release_unused)
        raise
    return SQLiteTransport(place, opened)


class SQLiteTransport:
    """A connection to a store in a file, bound to the event loop that it was opened in."""

    features = FEATURES

    def __init__(self, place: tuple[int, int], opened: _Opened) -> None:
        self.port = Port(opened.writer, asyncio.get_running_loop())
        self._place = place
        self._reader = opened.reader
        self._subscriptions: set[SQLiteSubscription] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def declare(self, spec: QueueSpec) -> None:
        self.check_open()
        check_spec(spec)
        await self.port.call(lambda store: _declare(store, spec))

    async def delete(self, queue: str) -> None:
        self.check_open()
        try:
            await self._drop(queue, leased=True)
        except QueueNotFoundError:
            return
        await self.port.call(self._delete_if_there(queue))

    async def queues(self) -> Sequence[QueueSpec]:
        self.check_open()
        return await self._reader.queues()

    async def send(self, *sends: Send) -> None:
        self.check_open()
        if not sends:
            return
        rows = rows_of(sends)
        future: asyncio.Future[None] = self.port.loop.create_future()
        self.port.submit(Request(Kind.SEND, self.port, future, rows=rows))
        await future

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[SQLiteSubscription]:
        self.check_open()
        subscription = SQLiteSubscription(self, queue, prefetch)
        self._subscriptions.add(subscription)
        try:
            await subscription.join()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.leave()

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        self.check_open()
        return await self._reader.peek(queue, limit)

    async def depth(self, queue: str) -> Depth:
        self.check_open()
        return await self._reader.depth(queue)

    async def purge(self, queue: str) -> int:
        self.check_open()
        return await self._drop(queue, leased=False)

    async def close(self) -> None:
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def check_open(self) -> None:
        if self._closed:
            raise TransportClosedError
        self.port.writer.check()

    async def _close(self) -> None:
        if self.port.writer.abandoned:
            return
        try:
            for subscription in list(self._subscriptions):
                await subscription.leave()
        finally:
            self.port.flush()
            await asyncio.to_thread(_release, self._place)

    async def _drop(self, name: str, *, leased: bool) -> int:
        """Remove the messages that are there now, some at a time so that others can write in between."""
        last: int | None = None
        dropped = 0

        def step(store: Store) -> int:
            nonlocal last
            with store.transaction():
                queue = _find(store, name)
                if last is None:
                    last = store.last_seq(queue)
                count = store.drop_messages(queue, last, leased=leased)
                store.unblock_all(queue, wall())
            return count

        while True:
            count: int = await self.port.call(step)
            dropped += count
            if not count:
                return dropped

    def _delete_if_there(self, name: str) -> Any:
        def delete(store: Store) -> None:
            with store.transaction():
                store.refresh_queues()
                if not store.knows(name):
                    return
                queue = store.queue(name)
                store.drop_queue(queue)
            store.refresh_queues()
            self.port.writer.announce(queue)

        return delete


def _find(store: Store, name: str) -> Queue:
    store.refresh_queues()
    return store.queue(name)


def _declare(store: Store, spec: QueueSpec) -> None:
    store.refresh_queues()
    if not store.knows(spec.name):
        with store.transaction():
            store.refresh_queues()
            if not store.knows(spec.name):
                store.add_queue(spec)
        store.refresh_queues()
    check_equal(store.queue(spec.name).spec, spec)


def _acquire(path: Path, busy: float) -> tuple[tuple[int, int], _Opened]:
    with opening:
        free_inherited()
        prepare(path)
        place = place_of(path)
        if place is None:
            raise ConnectionLostError(f"{path}: the file was removed")
        opened = _opened.get(place)
        if opened is None:
            opened = _opened[place] = _Opened(path, busy)
        opened.users += 1
        return place, opened


def _release(place: tuple[int, int]) -> None:
    with opening:
        opened = _opened[place]
        opened.users -= 1
        if not opened.users:
            del _opened[place]
            opened.writer.stop()
            opened.reader.close()


def _release_unused(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        place, _ = opening.result()
        threading.Thread(target=_release, args=(place,)).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_opened.clear)  # the child opens its own
