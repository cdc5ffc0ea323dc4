"""Questions that change nothing, over a connection and in a thread of their own: they keep nobody from writing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from oncue.core.errors import ConnectionLostError, QueueNotFoundError
from oncue.core.message import Message
from oncue.transports.base import Depth, QueueSpec
from oncue.transports.sqlite.clock import steady, wall
from oncue.transports.sqlite.file import connect, mapped, numbered, place_of
from oncue.transports.sqlite.schema import BLOCKED, LEASED, READY, SCHEDULED, SUSPECT, configure

_T = TypeVar("_T")

_COUNT = "(SELECT count(*) FROM oncue_messages WHERE queue = ?1 AND state = %d AND at > ?%d)"

# Nothing here counts what is ready, which may be very much.
_DEPTH = f"""SELECT messages, {_COUNT % (LEASED, 3)}, {_COUNT % (SCHEDULED, 2)} + {_COUNT % (BLOCKED, 2)}, %s
FROM oncue_queues WHERE id = ?1"""

# Those that grew too old and have not been removed yet do not count.
_TOO_OLD = f"""(SELECT count(*) FROM oncue_messages WHERE queue = ?1 AND since <= ?4
AND NOT (state = {LEASED} AND at > ?3) AND NOT (state IN ({SCHEDULED}, {BLOCKED}) AND at > ?2))"""

_SEQS = "SELECT seq FROM oncue_messages WHERE queue = ?1 AND state = %d ORDER BY %s LIMIT ?2"
_PEEK = (
    "SELECT head, body FROM oncue_messages WHERE seq IN (SELECT seq FROM ("
    + " UNION ALL ".join(
        f"SELECT * FROM ({_SEQS % (state, order)})"
        for state, order in (
            (READY, "at, seq"),
            (SUSPECT, "at, seq"),
            (BLOCKED, "seq"),
            (SCHEDULED, "seq"),
            (LEASED, "seq"),
        )
    )
    + f") ORDER BY seq LIMIT ?2) AND NOT (state IN ({READY}, {SUSPECT}, {BLOCKED}) AND since <= ?3) ORDER BY seq"
)

_decode_head = msgspec.json.Decoder(tuple[str, str | None, dict[str, str]]).decode
_decode_spec = msgspec.json.Decoder(QueueSpec).decode


class Reader:
    """Answers one question at a time. `turn` is held while the connection is in use."""

    def __init__(self, path: Path) -> None:
        self.turn = threading.Lock()
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"oncue-{path.name}-reader")

    async def depth(self, name: str) -> Depth:
        """How many messages are ready, leased and delayed at this moment."""
        return await self._ask(lambda connection: _depth(connection, name))

    async def peek(self, name: str, limit: int) -> Sequence[Message]:
        """The oldest messages in the order of sending, whatever their state."""
        return await self._ask(lambda connection: _peek(connection, name, max(0, limit)))

    async def queues(self) -> Sequence[QueueSpec]:
        """All queues by name."""
        return await self._ask(_queues)

    def close(self) -> None:
        """Blocks until the present question is answered."""
        self._thread.shutdown()
        self._disconnect()

    def abandon(self) -> Callable[[], None] | None:
        """In a forked child: let go of the connection. See `forks`."""
        connection, self._connection = self._connection, None
        return None if connection is None else connection.close

    def _disconnect(self) -> None:
        """Close the connection, in this thread."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _ask(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, question)

    def _answer(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        with self.turn:
            try:
                place = place_of(self._path)
                if self._connection is not None and place != self._place:
                    raise ConnectionLostError(f"{self._path}: the file was removed or replaced")
                if self._connection is None:
                    self._place = place
                    self._connection = connect(self._path)
                    configure(self._connection)
                return question(self._connection)
            except QueueNotFoundError:
                raise
            except Exception as error:
                self._disconnect()
                raise mapped(error, self._path) from error


def _find(connection: sqlite3.Connection, name: str) -> tuple[int, QueueSpec]:
    row = connection.execute("SELECT id, spec FROM oncue_queues WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise QueueNotFoundError(name)
    return row[0], _decode_spec(row[1])


def _oldest_kept(spec: QueueSpec) -> int:
    return -1 if spec.retention is None else wall() - round(spec.retention * 1e6)


def _depth(connection: sqlite3.Connection, name: str) -> Depth:
    id, spec = _find(connection, name)
    too_old = "?4" if spec.retention is None else _TOO_OLD
    oldest = 0 if spec.retention is None else _oldest_kept(spec)
    row = connection.execute(_DEPTH % too_old, numbered(id, wall(), steady(), oldest)).fetchone()
    if row is None:
        raise QueueNotFoundError(name)
    messages, leased, delayed, old = row
    return Depth(messages - leased - delayed - old, leased, delayed)


def _peek(connection: sqlite3.Connection, name: str, limit: int) -> Sequence[Message]:
    id, spec = _find(connection, name)
    found = []
    for head, body in connection.execute(_PEEK, numbered(id, limit, _oldest_kept(spec))):
        message_id, key, headers = _decode_head(head)
        found.append(Message(body, message_id, headers, key))
    return found


def _queues(connection: sqlite3.Connection) -> Sequence[QueueSpec]:
    return [_decode_spec(spec) for (spec,) in connection.execute("SELECT spec FROM oncue_queues ORDER BY name")]
