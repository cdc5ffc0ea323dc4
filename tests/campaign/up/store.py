"""The campaign's look into the file of the queues: every message that ever enters an end is written down with it, in the one
transaction that sends it there, by triggers; so nothing that happens to whoever takes it out can hide it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from oncue.core.envelope import decode_envelope
from oncue.ends import read_failure
from oncue.transports.sqlite.schema import LEASED

from .ledger import End, Place

_HAPPY, _ERROR = "asya-happy-end", "asya-error-end"
_DEAD = "-dlq"


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        yield connection


def write_down_ends(path: Path) -> None:
    """Install the triggers. The queues have to be there."""
    with opened(path) as connection:
        connection.execute("CREATE TABLE campaign_ends (queue TEXT NOT NULL, body BLOB NOT NULL)")
        connection.execute(
            "CREATE TRIGGER campaign_ended AFTER INSERT ON oncue_messages "
            f"WHEN NEW.queue IN (SELECT id FROM oncue_queues WHERE name IN ('{_HAPPY}', '{_ERROR}') OR name LIKE '%{_DEAD}') "
            "BEGIN INSERT INTO campaign_ends SELECT name, NEW.body FROM oncue_queues WHERE id = NEW.queue; END"
        )


def ends(path: Path) -> Sequence[End]:
    """Every end that was ever reached."""
    with opened(path) as connection:
        rows = connection.execute("SELECT queue, body FROM campaign_ends").fetchall()
    return [_end(queue, body) for queue, body in rows]


def counts(path: Path) -> dict[str, int]:
    """How many messages have entered each end, by its queue."""
    with opened(path) as connection:
        return dict(connection.execute("SELECT queue, count(*) FROM campaign_ends GROUP BY queue").fetchall())


def results(path: Path) -> Sequence[tuple[str, str]]:
    """Id and status of each result."""
    with opened(path) as connection:
        return connection.execute("SELECT id, status FROM oncue_results").fetchall()


def under_way(path: Path) -> dict[str, int]:
    """How many messages there are in each queue that is not for dead letters, if there are any."""
    with opened(path) as connection:
        found = connection.execute(
            f"SELECT name, messages FROM oncue_queues WHERE messages AND name NOT LIKE '%{_DEAD}'"
        ).fetchall()
    return dict(found)


def run_leases_out(path: Path) -> None:
    """What else takes a minute; to be called while nobody works."""
    with opened(path) as connection:
        connection.execute("UPDATE oncue_messages SET at = 1 WHERE state = ?", (LEASED,))


def _end(queue: str, body: bytes) -> End:
    envelope = decode_envelope(body)
    payload = json.loads(bytes(envelope.payload))
    place: Place = {_HAPPY: "happy", _ERROR: "error"}.get(queue, "dead")  # type: ignore[assignment]
    note = payload["original_payload"] if place == "error" else payload
    code = read_failure(envelope.payload).code if place == "error" else ""
    return End(place, envelope.id, (note["sender"], note["number"], note["item"]), code)
