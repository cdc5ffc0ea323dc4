"""The tables of a store, and how a file becomes one: created, checked, or brought up from an older version.

A message is in one of the states below. `at` is the moment of the state: when a scheduled or blocked message is due (wall
clock), when a lease ends (steady clock), and `ORIGIN` for what is ready, so that the index yields ready messages in the order
of sending, scheduled ones as they come due, and leased ones as their leases end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oncue.core.errors import IncompatibleStoreError
from oncue.transports.sqlite import clock
from oncue.transports.sqlite.file import BUSY, connect, mapped_errors, patiently, prepare

APPLICATION_ID = 0x4F6E4375  # "OnCu"

READY = 2
SCHEDULED = 3
LEASED = 4
SUSPECT = 5  # ready, but leases on it ran out twice or more
BLOCKED = 6  # in a fifo queue, behind another message of its key
NO_TOKEN = 1 << 60  # as long as any token, so that a claim never changes the size of a row

Migration = Callable[[sqlite3.Connection], None]


def _create(connection: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE oncue_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE oncue_queues (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            spec TEXT NOT NULL,
            messages INTEGER NOT NULL DEFAULT 0
        )""",
        # The body stands last: what is before it can be read and changed without it.
        """CREATE TABLE oncue_messages (
            seq INTEGER PRIMARY KEY,
            queue INTEGER NOT NULL REFERENCES oncue_queues (id),
            state INTEGER NOT NULL,
            at INTEGER NOT NULL,
            token INTEGER NOT NULL,
            attempt INTEGER NOT NULL,
            lost INTEGER NOT NULL,
            since INTEGER NOT NULL,
            key TEXT,
            head TEXT NOT NULL,
            body BLOB NOT NULL
        )""",
        "CREATE INDEX oncue_messages_by_state ON oncue_messages (queue, state, at)",
        "CREATE INDEX oncue_messages_by_key ON oncue_messages (queue, key) WHERE key IS NOT NULL",
        # Counting a million messages takes long, and whoever asks for a queue's depth may ask every second.
        """CREATE TRIGGER oncue_messages_more AFTER INSERT ON oncue_messages BEGIN
            UPDATE oncue_queues SET messages = messages + 1 WHERE id = NEW.queue;
        END""",
        """CREATE TRIGGER oncue_messages_fewer AFTER DELETE ON oncue_messages BEGIN
            UPDATE oncue_queues SET messages = messages - 1 WHERE id = OLD.queue;
        END""",
    ):
        connection.execute(statement)


MIGRATIONS: Sequence[Migration] = (_create,)
"""Step n makes a store of version n + 1 out of one of version n. Steps are only ever added."""


def open_store(path: Path, migrations: Sequence[Migration] = MIGRATIONS, *, busy: float = BUSY) -> sqlite3.Connection:
    """A connection for writing to the store at `path`, which is made if it is missing.

    Blocks up to `busy` seconds while others keep the file busy. Raises `AccessDeniedError`, `StorageFullError`,
    `ConnectionLostError`, or `IncompatibleStoreError` when the file is something else, or of a newer version.
    """
    prepare(path)
    return _open(path, migrations, busy)


def reopen_store(path: Path, *, busy: float = BUSY) -> sqlite3.Connection:
    """As `open_store`, for a store that was open before: it is not made again."""
    return _open(path, MIGRATIONS, busy)


def configure(connection: sqlite3.Connection) -> None:
    """The settings that belong to a connection."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "PRAGMA secure_delete = FAST"
    )  # some systems build SQLite so that it writes freed pages once more
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -8192")
    connection.execute("PRAGMA wal_autocheckpoint = 2000")
    connection.execute("PRAGMA journal_size_limit = 16777216")


def _open(path: Path, migrations: Sequence[Migration], busy: float) -> sqlite3.Connection:
    with mapped_errors(path):
        connection = connect(path, busy)
        try:
            patiently(lambda: _set_up(connection, path, migrations), busy)
        except BaseException:
            connection.close()
            raise
        return connection


def _set_up(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    if connection.in_transaction:
        connection.rollback()
    connection.execute("BEGIN")  # one look at it: another process may be making this very store
    _check_kind(connection, path, len(migrations))
    fresh = _value(connection, "PRAGMA application_id") != APPLICATION_ID
    connection.execute("COMMIT")
    if fresh:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if _value(connection, "PRAGMA journal_mode = WAL") != "wal":
        raise IncompatibleStoreError(f"{path}: its file system does not allow a write-ahead log: choose a local disk")
    configure(connection)
    if fresh and _value(connection, "PRAGMA auto_vacuum") != 2:
        connection.execute("VACUUM")  # somebody else's tables were there before; only this lets the file shrink later
    connection.execute("BEGIN IMMEDIATE")
    _check_kind(connection, path, len(migrations))
    version = _value(connection, "PRAGMA user_version")
    if version != len(migrations):
        for step in migrations[version:]:
            step(connection)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
    if fresh:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _end_leases_of_earlier_run(connection)
    connection.execute("COMMIT")


def _check_kind(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    application = _value(connection, "PRAGMA application_id")
    version = _value(connection, "PRAGMA user_version")
    if application != APPLICATION_ID:
        strangers = _value(
            connection,
            r"SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'oncue\_%' ESCAPE '\' "
            r"AND tbl_name NOT LIKE 'oncue\_%' ESCAPE '\' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'",
        )
        if application != 0 or version != 0 or strangers:
            raise IncompatibleStoreError(f"{path} is another program's SQLite file; nothing was changed")
    elif version > newest:
        raise IncompatibleStoreError(
            f"{path} was made by a newer OnCue (store version {version}, this one knows {newest}): upgrade this one"
        )


def _end_leases_of_earlier_run(connection: sqlite3.Connection) -> None:
    """Leases from before the machine started belong to nobody, and their times mean nothing."""
    found = dict(connection.execute("SELECT name, value FROM oncue_meta WHERE name IN ('boot', 'steady')").fetchall())
    boot, steady = clock.boot_id(), clock.steady()
    # Where the system does not name its runs, a clock that went back tells of a restart.
    if found.get("boot") != boot or (not boot and steady < int(found.get("steady", 0))):
        connection.execute(
            f"UPDATE oncue_messages SET state = CASE WHEN lost >= 2 THEN {SUSPECT} ELSE {READY} END, at = ? WHERE state = ?",
            (clock.ORIGIN, LEASED),
        )
    if found.get("boot") != boot or not boot:
        connection.executemany(
            "INSERT INTO oncue_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [("boot", boot), ("steady", str(steady))],
        )


def _value(connection: sqlite3.Connection, query: str) -> Any:
    return connection.execute(query).fetchone()[0]
