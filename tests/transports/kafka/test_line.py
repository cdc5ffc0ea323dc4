"""In which order messages are taken."""

from __future__ import annotations

import asyncio

from oncue.core.message import Message
from oncue.transports.kafka.codec import Received, State
from oncue.transports.kafka.ledger import Entry, Ledger, Stage
from oncue.transports.kafka.line import Line


def line_of(*keys: str) -> tuple[Line, Ledger, list[Entry]]:
    """A line that keeps the order of each key, with a message of each of these keys in it."""
    line = Line(asyncio.get_running_loop(), fifo=True, ready=lambda: None)
    ledger = Ledger(0, "abc")
    entries = []
    for offset, key in enumerate(keys):
        entry = Entry(ledger, offset)
        entry.received = Received(Message(b"", str(offset), key=key), State(str(offset)))
        ledger.begin(entry)
        line.put(entry)
        entries.append(entry)
    return line, ledger, entries


async def test_the_next_of_a_key_waits_until_the_one_before_is_finished() -> None:
    line, ledger, (first, second, other) = line_of("a", "a", "b")
    assert line.take(9, 9, [ledger]) == [first, other]
    assert line.take(9, 9, [ledger]) == []
    ledger.finish(first)
    line.finished(first)
    assert line.take(9, 9, [ledger]) == [second]


async def test_what_was_finished_and_is_not_holds_up_those_of_its_key_again() -> None:
    line, ledger, (first, second, other) = line_of("a", "a", "b")
    line.take(9, 9, [ledger])
    ledger.finish(first)
    line.finished(first)
    ledger.resume(first)  # nobody knows whether that was written down
    line.resume(first)
    first.stage = Stage.HELD
    assert line.take(9, 9, [ledger]) == []
    ledger.finish(first)
    line.finished(first)
    assert line.take(9, 9, [ledger]) == [second]
    assert other.stage is Stage.TAKEN
