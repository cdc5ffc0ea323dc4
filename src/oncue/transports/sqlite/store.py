"""Every statement on messages and queues, as plain calls over one connection; only the writer's thread makes them.

Python's `sqlite3` gives up the interpreter's lock for each step of a statement and may wait milliseconds to get it back
while an event loop is busy. So each call is one statement of one step, however many messages it is about: rows are inserted
by the hundred, leases are settled by way of a JSON document, and a claim reads all of its messages as one row.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from oncue.core.errors import QueueNotFoundError
from oncue.core.message import Message
from oncue.transports.base import QueueSpec
from oncue.transports.sqlite.clock import ORIGIN
from oncue.transports.sqlite.file import BUSY, is_busy, numbered
from oncue.transports.sqlite.schema import BLOCKED, LEASED, NO_TOKEN, READY, SCHEDULED, SUSPECT

LAPSES = 2
"""A message whose leases ran out this often may be what ends its consumers."""

_CHUNKS = (256, 32, 4, 1)
_AT_ONCE = 2000
_CLAIM_MOST = 1024
_SMALL = 8 * 1024

_OFFERED = f"CASE WHEN lost >= {LAPSES} THEN {SUSPECT} ELSE {READY} END"

_INSERT = {
    size: "INSERT INTO oncue_messages (queue, state, at, since, key, head, body, token, attempt, lost) VALUES "
    + ", ".join([f"(?, ?, ?, ?, ?, ?, ?, {NO_TOKEN}, 0, 0)"] * size)
    for size in _CHUNKS
}

_HELD = f"""FROM json_each(?) AS asked CROSS JOIN oncue_messages AS m ON m.seq = CAST(asked.key AS INTEGER)
WHERE m.token = asked.value AND m.state = {LEASED} AND m.at > ?"""

_CHANGE = f"""UPDATE oncue_messages AS m
SET state = CASE WHEN asked.state = {READY} AND lost >= {LAPSES} THEN {SUSPECT} ELSE asked.state END,
    at = asked.at, attempt = attempt - asked.uncounted
FROM (SELECT value ->> 0 AS seq, value ->> 1 AS token, value ->> 2 AS state, value ->> 3 AS at, value ->> 4 AS uncounted
      FROM json_each(?)) AS asked
WHERE m.seq = asked.seq AND m.token = asked.token AND m.state = {LEASED} AND m.at > ?"""

_DUE = f"""(SELECT at FROM oncue_messages WHERE queue = ?1 AND state = {SCHEDULED} ORDER BY at LIMIT 1),
(SELECT at FROM oncue_messages WHERE queue = ?1 AND state = {LEASED} ORDER BY at LIMIT 1)"""

_LOOK = f"""SELECT EXISTS (SELECT 1 FROM oncue_queues WHERE id = ?1), {_DUE},
EXISTS (SELECT 1 FROM oncue_messages WHERE queue = ?1 AND state = {READY}),
EXISTS (SELECT 1 FROM oncue_messages WHERE queue = ?1 AND state = {SUSPECT})"""

_FRONT = f"""SELECT seq, attempt, lost, since, head, length(body) AS size,
CASE WHEN length(body) <= {_SMALL} THEN body END AS small
FROM oncue_messages WHERE queue = ?1 AND state = %d ORDER BY at, seq LIMIT %s"""

_TAKE = f"""SELECT EXISTS (SELECT 1 FROM oncue_queues WHERE id = ?1), {_DUE}, min(since),
group_concat(seq), group_concat(attempt), group_concat(lost), group_concat(size),
CAST(group_concat(small, '') AS BLOB), '[' || group_concat(head) || ']'
FROM (SELECT * FROM ({_FRONT % (SUSPECT, "?2")}) UNION ALL SELECT * FROM ({_FRONT % (READY, "?3")}))"""

# Only the front of the queue is looked at, where the oldest are; a message that was delayed may have to wait its turn.
_OLDEST = " UNION ALL ".join(
    f"SELECT * FROM (SELECT seq, since FROM oncue_messages WHERE queue = ?1 AND state = {state} "
    f"ORDER BY at, seq LIMIT {_AT_ONCE})"
    for state in (READY, SUSPECT, BLOCKED)
)
_OLD = f"SELECT seq FROM ({_OLDEST}) WHERE since <= ?2"

_LEASE = f"""UPDATE oncue_messages SET state = {LEASED}, at = ?, token = ?, attempt = attempt + 1
WHERE seq IN (SELECT value FROM json_each(?))"""

_FIRST_OF_KEY = f"""UPDATE oncue_messages
SET state = CASE WHEN at > ?1 THEN {SCHEDULED} ELSE {_OFFERED} END, at = CASE WHEN at > ?1 THEN at ELSE {ORIGIN} END
WHERE state = {BLOCKED} AND seq IN
(SELECT (SELECT min(seq) FROM oncue_messages WHERE queue = ?2 AND key = asked.value) FROM json_each(?3) AS asked)"""

_FIRST_OF_ALL_KEYS = f"""UPDATE oncue_messages
SET state = CASE WHEN at > ?1 THEN {SCHEDULED} ELSE {_OFFERED} END, at = CASE WHEN at > ?1 THEN at ELSE {ORIGIN} END
WHERE queue = ?2 AND state = {BLOCKED} AND NOT EXISTS (SELECT 1 FROM oncue_messages AS before
WHERE before.queue = oncue_messages.queue AND before.key = oncue_messages.key AND before.seq < oncue_messages.seq)"""

_decode_heads = msgspec.json.Decoder(list[tuple[str, str | None, dict[str, str]]]).decode
_encode = msgspec.json.Encoder().encode


class Queue(NamedTuple):
    """A queue as it is stored; `lease` and `retention` in microseconds."""

    id: int
    spec: QueueSpec
    lease: int
    retention: int | None


class Row(NamedTuple):
    """A message to be stored; `delay` in microseconds, `head` the JSON of id, key and headers."""

    queue: str
    delay: int
    key: str | None
    head: str
    body: bytes


class Holding(NamedTuple):
    """What proves that a lease is held."""

    seq: int
    token: int


class Change(NamedTuple):
    """What a lease is turned into; `uncounted` is 1 to give its attempt back."""

    seq: int
    token: int
    state: int
    at: int
    uncounted: int


class Taken(NamedTuple):
    """A message that was leased."""

    seq: int
    attempt: int
    suspect: bool
    message: Message


class Claim(NamedTuple):
    """What is asked for: up to `most` messages, one suspect or none of them, and not many more than `size` bytes."""

    most: int
    size: int
    suspects: bool
    until: int
    token: int


class Look(NamedTuple):
    """What a queue has to offer: whether it exists, when its next scheduled message and its next lease's end are due."""

    exists: bool
    scheduled: int | None
    leased: int | None
    ready: bool
    suspects: bool


class DoubtError(Exception):
    """Something asked for in this transaction cannot be done; it has to be tried again with a closer look."""


class Store:
    """Calls over one connection. All of them belong into a transaction but `look` and those that say so."""

    def __init__(self, connection: sqlite3.Connection, busy: float = BUSY) -> None:
        self.connection = connection
        self._busy = busy
        connection.execute("PRAGMA busy_timeout = 0")  # see _again_while_busy
        self._execute = connection.execute
        self._queues: dict[str, Queue] = {}

    def begin(self) -> None:
        """Start a transaction that can write. Blocks up to `busy` seconds for other processes."""
        self._patiently("BEGIN IMMEDIATE")

    def _patiently(self, statement: str, values: Sequence[object] | Mapping[str, object] = ()) -> sqlite3.Cursor:
        """Execute outside of a transaction, where others may be in the way for up to `busy` seconds."""
        return self._again_while_busy(lambda: self._execute(statement, values))

    def _again_while_busy(self, execute: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        until = time.monotonic() + self._busy
        pause = 0.0002
        while True:
            try:
                return execute()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > until:
                    raise
            # SQLite's own waiting soon sleeps a tenth of a second at a time, which starves whoever waits among many.
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 1.5, 0.004)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self.begin()
        try:
            yield
            self.commit()
        finally:
            self.rollback()

    def commit(self) -> None:
        self._execute("COMMIT")

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self._execute("ROLLBACK")

    # Queues

    def refresh_queues(self) -> None:
        """Read all queues anew."""
        rows = self._patiently("SELECT id, name, spec FROM oncue_queues").fetchall()
        self._queues = {name: _queue(id, spec) for id, name, spec in rows}

    def queue(self, name: str) -> Queue:
        """The queue as it was when it was last read; raise `QueueNotFoundError`."""
        try:
            return self._queues[name]
        except KeyError:
            raise QueueNotFoundError(name) from None

    def known_queues(self) -> Iterable[Queue]:
        return tuple(self._queues.values())

    def knows(self, name: str) -> bool:
        return name in self._queues

    def add_queue(self, spec: QueueSpec) -> None:
        self._execute(
            "INSERT INTO oncue_queues (name, spec) VALUES (?, ?)", (spec.name, msgspec.json.encode(spec).decode())
        )

    def drop_queue(self, queue: Queue) -> None:
        """Remove the queue with all of its messages."""
        self._execute("DELETE FROM oncue_messages WHERE queue = ?", (queue.id,))
        self._execute("DELETE FROM oncue_queues WHERE id = ?", (queue.id,))

    def last_seq(self, queue: Queue) -> int:
        """The newest message of the queue."""
        found = self._execute(
            "SELECT max(last) FROM (SELECT max(seq) AS last FROM oncue_messages WHERE queue = ? GROUP BY state)",
            (queue.id,),
        )
        return found.fetchone()[0] or 0

    def drop_messages(self, queue: Queue, last: int, *, leased: bool = False) -> int:
        """Remove some of the messages up to `last`, those that are leased only if asked for; 0 when none is left."""
        return self._execute(
            f"DELETE FROM oncue_messages WHERE seq IN (SELECT seq FROM oncue_messages WHERE queue = ? AND state IN "
            f"({READY}, {SCHEDULED}, {SUSPECT}, {BLOCKED}{f', {LEASED}' if leased else ''}) AND seq <= ? LIMIT {5 * _AT_ONCE})",
            (queue.id, last),
        ).rowcount

    # Messages

    def insert(self, rows: Sequence[Row], wall: int) -> set[int]:
        """Store messages; the queues that have something new on offer. Raise `DoubtError` for a queue that is not known."""
        queues = self._queues
        touched: set[int] = set()
        lanes: dict[str, set[str]] = {}
        values: list[object] = []
        for name, delay, key, head, body in rows:
            queue = queues.get(name)
            if queue is None:
                raise DoubtError
            state, at, lane = READY, ORIGIN, None
            if delay:
                state, at = SCHEDULED, wall + delay
            if queue.spec.fifo:
                state, lane = BLOCKED, lane_of(key)
                lanes.setdefault(name, set()).add(lane)
            touched.add(queue.id)
            values += (queue.id, state, at, wall + delay, lane, head, body)
        self._insert_values(values, len(rows))
        for name, keys in lanes.items():
            self.unblock(queues[name], keys, wall)
        return touched

    def _insert_values(self, values: list[object], count: int) -> None:
        start = 0
        try:
            for size in _CHUNKS:
                statement = _INSERT[size]
                while count >= size:
                    self._execute(statement, values[start : start + 7 * size])
                    start += 7 * size
                    count -= size
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
                raise DoubtError from error
            raise

    def unblock(self, queue: Queue, lanes: Iterable[str], wall: int) -> None:
        """Offer the first message of each of these keys of a fifo queue."""
        self._execute(_FIRST_OF_KEY, numbered(wall, queue.id, _encode(list(lanes)).decode()))

    def held(self, holdings: Iterable[Holding], steady: int) -> set[Holding]:
        """Those of the leases that are still held."""
        query = f"SELECT group_concat(m.seq || ' ' || m.token) {_HELD}"
        found = self._execute(query, (_pairs(holdings), steady)).fetchone()[0]
        return {Holding(*map(int, pair.split())) for pair in found.split(",")} if found else set()

    def remove(self, holdings: Sequence[Holding], steady: int) -> int:
        """Remove the messages of these leases; how many of them were still held."""
        query = f"DELETE FROM oncue_messages WHERE seq IN (SELECT m.seq {_HELD})"
        return self._execute(query, (_pairs(holdings), steady)).rowcount

    def change(self, changes: Iterable[Change], steady: int) -> int:
        """Change these leases; how many of them were still held."""
        asked = (
            "[" + ",".join([f"[{seq},{token},{state},{at},{free}]" for seq, token, state, at, free in changes]) + "]"
        )
        return self._execute(_CHANGE, (asked, steady)).rowcount

    def look(self, queue: Queue) -> Look:
        """What there is to claim; outside of a transaction."""
        return Look(*self._patiently(_LOOK, numbered(queue.id)).fetchone())

    def take(self, queue: Queue, claim: Claim, wall: int, steady: int) -> tuple[Look, list[Taken]]:
        """Lease messages that are ready or have become so by now; them, and what there is besides."""
        wanted = min(claim.most, _CLAIM_MOST)
        caught_up = False
        while True:
            row = self._execute(_TAKE, numbered(queue.id, int(claim.suspects), wanted)).fetchone()
            exists, scheduled, leased, since, *columns = row
            late = (scheduled is not None and scheduled <= wall) or (leased is not None and leased <= steady)
            if late and not caught_up:
                self._catch_up(queue, wall, steady)
                caught_up = True
            elif queue.retention is not None and since is not None and since + queue.retention <= wall:
                self.drop_old(queue, wall)
            else:
                break
        taken = [] if columns[0] is None else self._taken(columns, wanted, claim.size)
        if taken:
            self._execute(_LEASE, (claim.until, claim.token, "[" + ",".join([str(each.seq) for each in taken]) + "]"))
        more = columns[0] is not None and columns[0].count(",") + 1 >= wanted
        return Look(bool(exists), scheduled, leased, more, False), taken

    def _taken(self, columns: Sequence[Any], most: int, budget: int) -> list[Taken]:
        seqs, attempts, losses, sizes, small, heads = columns
        taken: list[Taken] = []
        at = 0
        for seq_text, attempt, lost, size_text, (id, key, headers) in zip(
            seqs.split(","), attempts.split(","), losses.split(","), sizes.split(","), _decode_heads(heads), strict=True
        ):
            if len(taken) == most or (budget <= 0 and taken):
                break
            seq, size = int(seq_text), int(size_text)
            budget -= size
            if size <= _SMALL:
                body = small[at : at + size]
                at += size
            else:
                body = self._execute("SELECT body FROM oncue_messages WHERE seq = ?", (seq,)).fetchone()[0]
            taken.append(Taken(seq, int(attempt) + 1, int(lost) >= LAPSES, Message(body, id, headers, key)))
        return taken

    def _catch_up(self, queue: Queue, wall: int, steady: int) -> None:
        """Offer what has come due and what leases ran out on, some of it at a time."""
        self._execute(
            f"UPDATE oncue_messages SET state = {_OFFERED}, at = {ORIGIN} WHERE seq IN (SELECT seq FROM oncue_messages "
            f"WHERE queue = ? AND state = {SCHEDULED} AND at <= ? ORDER BY at LIMIT {_AT_ONCE})",
            (queue.id, wall),
        )
        self._execute(
            f"UPDATE oncue_messages SET state = CASE WHEN lost + 1 >= {LAPSES} THEN {SUSPECT} ELSE {READY} END, "
            f"at = {ORIGIN}, lost = lost + 1 WHERE seq IN (SELECT seq FROM oncue_messages "
            f"WHERE queue = ? AND state = {LEASED} AND at <= ? ORDER BY at LIMIT {_AT_ONCE})",
            (queue.id, steady),
        )

    def has_old(self, queue: Queue, wall: int) -> bool:
        """Whether a message was kept for longer than the queue keeps them; outside of a transaction."""
        if queue.retention is None:
            return False
        found = self._patiently(f"SELECT EXISTS ({_OLD})", numbered(queue.id, wall - queue.retention))
        return bool(found.fetchone()[0])

    def drop_old(self, queue: Queue, wall: int) -> None:
        """Remove messages that were kept for longer than the queue keeps them, some at a time."""
        if queue.retention is None:
            return
        self._execute(f"DELETE FROM oncue_messages WHERE seq IN ({_OLD})", numbered(queue.id, wall - queue.retention))
        self.unblock_all(queue, wall)

    def unblock_all(self, queue: Queue, wall: int) -> None:
        """Offer the first message of every key of a fifo queue."""
        if queue.spec.fifo:
            self._execute(_FIRST_OF_ALL_KEYS, numbered(wall, queue.id))

    # Housekeeping, outside of transactions

    def data_version(self) -> int:
        """A number that changes when another connection has committed."""
        return int(self._patiently("PRAGMA data_version").fetchone()[0])

    def version(self) -> int:
        """The schema's version."""
        return int(self._patiently("PRAGMA user_version").fetchone()[0])

    def free_pages(self) -> tuple[int, int]:
        """How many pages of the file are free, and how many there are."""
        free = self._patiently("PRAGMA freelist_count").fetchone()[0]
        return free, self._patiently("PRAGMA page_count").fetchone()[0]

    def shrink(self, pages: int) -> None:
        """Give up to `pages` free pages back to the file system."""
        # A step for each page and no columns: `execute` would leave it after the first one.
        self._again_while_busy(lambda: self.connection.executescript(f"PRAGMA incremental_vacuum({pages})"))

    def checkpoint(self) -> None:
        """Move all of the log into the file and cut the log, if nobody reads at the moment."""
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def lane_of(key: str | None) -> str:
    """A key as it is stored, in which no key is one too. SQLite's JSON would cut a text at a zero."""
    if key is None:
        return ""
    return f"x{key.encode().hex()}" if "\0" in key else f"={key}"


def new_token() -> int:
    """A token that no other claim has."""
    return random.randrange(NO_TOKEN + 1, 1 << 62)


def _pairs(holdings: Iterable[Holding]) -> str:
    return "{" + ",".join([f'"{seq}":{token}' for seq, token in holdings]) + "}"


def _queue(id: int, text: str) -> Queue:
    spec = msgspec.json.decode(text, type=QueueSpec)
    retention = None if spec.retention is None else round(spec.retention * 1e6)
    return Queue(id, spec, max(1, round(spec.lease * 1e6)), retention)
