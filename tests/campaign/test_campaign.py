"""The campaign itself: it counts rightly, and a short one comes out even."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from campaign.ledger import Ledger, shown

ROOT = Path(__file__).parents[2]
PLAIN, FAN_OUT, DYING = 1, 3, 7


def complete() -> Ledger:
    """All has come that was sent."""
    ledger = Ledger(in_flight=50)
    for number in (PLAIN, FAN_OUT, DYING):
        ledger.acknowledge(0, number)
    ledger.land([0, PLAIN, 0])
    for item in range(3):
        ledger.land([0, FAN_OUT, item])
    ledger.die([0, DYING, 0])
    return ledger


def test_what_came_as_it_was_sent_has_no_faults() -> None:
    ledger = complete()
    assert list(ledger.faults()) == []
    assert ledger.counts == (3, 4, 1)


def test_what_was_stored_without_its_killed_sender_hearing_of_it_is_no_fault() -> None:
    ledger = complete()
    ledger.land([0, 8, 0])
    assert list(ledger.faults()) == []


@pytest.mark.parametrize(
    ("note", "fault"),
    [
        ([0, PLAIN, 0], "doubled: item 0 of message 1"),
        ([0, FAN_OUT, 2], "doubled: item 2 of message 3"),
        ([0, PLAIN, 1], "invented: item 1 of message 1"),
        ([0, DYING, 0], "invented: item 0 of message 7"),
        ([0, 1001, 0], "invented: message 1001"),
        ([5, 1001, 0], "invented: message 1001 of sender 5"),
        ([0, 13, 0], "lost: item 1 of message 13"),
    ],
)
def test_what_comes_twice_or_from_nowhere_or_without_its_siblings_is_a_fault(note: list[int], fault: str) -> None:
    ledger = complete()
    ledger.land(note)
    assert fault in "\n".join(shown(ledger.faults()))


@pytest.mark.parametrize(
    ("number", "fault"),
    [(11, "lost: item 0 of message 11"), (13, "lost: item 2 of message 13"), (17, "lost: message 17 of sender 0")],
)
def test_what_was_acknowledged_and_never_came_is_a_fault(number: int, fault: str) -> None:
    ledger = complete()
    ledger.acknowledge(0, number)
    assert fault in "\n".join(shown(ledger.faults()))


@pytest.mark.parametrize(
    ("number", "fault"), [(DYING, "doubled: message 7 of sender 0 is 2 dead letters"), (PLAIN, "set aside though")]
)
def test_a_dead_letter_too_many_is_a_fault(number: int, fault: str) -> None:
    ledger = complete()
    ledger.die([0, number, 0])
    assert fault in "\n".join(shown(ledger.faults()))


def test_where_messages_may_come_twice_they_are_counted() -> None:
    ledger = Ledger(once=False)
    for note in ([0, PLAIN, 0], [0, PLAIN, 0]):
        ledger.land(note)
    for _ in range(3):
        ledger.die([0, DYING, 0])
    assert (ledger.twice, list(ledger.faults())) == (3, [])


@pytest.mark.timeout(180)
def test_a_short_campaign_comes_out_even() -> None:
    command = [sys.executable, "-m", "tests.campaign", "--minutes", "0.1", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "with seed 7" in done.stdout and "all accounted for" in done.stdout
