"""Results in a table of an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from oncue.core.errors import ConnectionLostError, TransportClosedError
from oncue.core.failure import Failure
from oncue.results import Result, Status
from oncue.transports.sqlite.file import connect, mapped_errors, path_of, patiently, prepare
from oncue.transports.sqlite.forks import free_inherited, watch

__all__ = ["SQLiteResults", "has_results", "path_of"]

_PURGE_EVERY = 60.0
_PURGE_AT_ONCE = 10_000

_T = TypeVar("_T")
_Row = tuple[Any, ...]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS oncue_results (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    actor TEXT NOT NULL,
    finished_at REAL NOT NULL,
    parent_id TEXT,
    failure BLOB,
    envelope BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS oncue_results_by_time ON oncue_results (finished_at);
"""

_PUT = """
INSERT INTO oncue_results (id, status, actor, finished_at, parent_id, failure, envelope) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET status = excluded.status, actor = excluded.actor, finished_at = excluded.finished_at,
    parent_id = excluded.parent_id, failure = excluded.failure, envelope = excluded.envelope
WHERE excluded.finished_at > oncue_results.finished_at
"""

_COLUMNS = "id, status, actor, finished_at, parent_id, failure, envelope"


class SQLiteResults:
    """A `ResultStore` in a table of an SQLite file, which may be the file of the queues.

    Its work is done in threads, one piece at a time, over a connection of its own. What is put while a transaction is
    written is stored in the next one, all together. Reading where there is no file yet finds nothing and makes none.
    """

    def __init__(self, path: Path, retention: float) -> None:
        self._path = path
        self._retention = retention
        self.turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._purged_at = 0.0
        self._waiting: list[tuple[_Row, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        watch(self)

    async def put(self, result: Result) -> None:
        failure = None if result.failure is None else msgspec.json.encode(result.failure)
        row = (
            result.id,
            result.status,
            result.actor,
            result.finished_at.timestamp(),
            result.parent_id,
            failure,
            result.envelope,
        )
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((row, stored))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await stored

    async def get(self, id: str) -> Result | None:
        rows = await self._rows(f"SELECT {_COLUMNS} FROM oncue_results WHERE id = ?", (id,))
        return rows[0] if rows else None

    async def list(
        self, *, status: Status | None = None, limit: int = 100, before: datetime | None = None
    ) -> Sequence[Result]:
        return await self._rows(
            f"SELECT {_COLUMNS} FROM oncue_results WHERE finished_at < ? AND (? IS NULL OR status = ?) "
            "ORDER BY finished_at DESC, id LIMIT ?",
            (float("inf") if before is None else before.timestamp(), status, status, limit),
        )

    async def purge(self) -> int:
        return await asyncio.to_thread(self._purge)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def abandon(self) -> Callable[[], None] | None:
        """In a forked child: let go of the connection; it gets its own. See `oncue.transports.sqlite.forks`."""
        connection, self._connection = self._connection, None
        return None if connection is None else connection.close

    async def _rows(self, query: str, parameters: tuple[Any, ...]) -> Sequence[Result]:
        def read(connection: sqlite3.Connection) -> Sequence[Result]:
            return [_result(row) for row in connection.execute(query, parameters)]

        return await asyncio.to_thread(self._with, read, (), reading=True)

    async def _write(self) -> None:
        """Store what waits, and what comes meanwhile, until nothing waits."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error = await self._stored([row for row, _ in batch])
            if error is None or len(batch) == 1 or isinstance(error, ConnectionLostError | TransportClosedError):
                errors = [error] * len(batch)
            else:  # one of them cannot be stored, and the others are not to blame
                errors = [await self._stored([row]) for row, _ in batch]
            for (_, stored), reason in zip(batch, errors, strict=True):
                if stored.done():  # cancelled
                    continue
                if reason is None:
                    stored.set_result(None)
                else:
                    stored.set_exception(reason)

    async def _stored(self, rows: Sequence[_Row]) -> Exception | None:
        """Why `rows` could not be stored; None when all are."""
        try:
            await asyncio.to_thread(self._put, rows)
        except Exception as error:
            return error
        return None

    def _put(self, rows: Sequence[_Row]) -> None:
        def store(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(_PUT, rows)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

        self._with(store, None)
        if time.monotonic() - self._purged_at > _PURGE_EVERY:
            self._purge()

    def _purge(self) -> int:
        def drop(connection: sqlite3.Connection) -> int:
            dropped, oldest = 0, time.time() - self._retention
            while True:
                found = connection.execute(
                    "DELETE FROM oncue_results WHERE id IN "
                    "(SELECT id FROM oncue_results WHERE finished_at < ? LIMIT ?)",
                    (oldest, _PURGE_AT_ONCE),
                ).rowcount
                dropped += found
                if found < _PURGE_AT_ONCE:
                    return dropped

        self._purged_at = time.monotonic()
        return self._with(drop, 0, reading=True)

    def _close(self) -> None:
        with self.turn:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _with(self, work: Callable[[sqlite3.Connection], _T], nothing: _T, *, reading: bool = False) -> _T:
        """What `work` returns, or `nothing` when it only reads and there is no file."""
        with self.turn, mapped_errors(self._path):
            if self._closed:
                raise TransportClosedError
            if self._connection is None:
                if reading and not self._path.exists():
                    return nothing
                self._connection = _connect(self._path)
            return work(self._connection)


def has_results(path: Path) -> bool:
    """Whether results were ever kept in this file, which is not touched. Blocks; raises as the store's methods."""
    if not path.exists():
        return False
    with mapped_errors(path), closing(connect(path)) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'oncue_results'").fetchall())


def _connect(path: Path) -> sqlite3.Connection:
    free_inherited()
    prepare(path)
    connection = connect(path)
    try:
        patiently(lambda: _set_up(connection))
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(_SCHEMA)


def _result(row: tuple[Any, ...]) -> Result:
    id, status, actor, finished_at, parent_id, failure, envelope = row
    return Result(
        id=id,
        status=status,
        actor=actor,
        finished_at=datetime.fromtimestamp(finished_at, UTC),
        envelope=envelope,
        parent_id=parent_id,
        failure=None if failure is None else msgspec.json.decode(failure, type=Failure),
    )
