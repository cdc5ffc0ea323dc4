"""What is written beside the committed offset is what the next consumer reads."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.transports.kafka.ledger import MOST, Entry, Ledger, Stage, load

STATES = st.tuples(st.integers(0, 12), st.integers(0, 3), st.booleans(), st.sampled_from([0.0, 1.5, 1_800_000_000.125]))
LIMIT = 4096
"""Bytes that Kafka keeps beside an offset, unless told otherwise."""


def ledger(start: int, states: list[tuple[int, tuple[int, int, bool, float]]]) -> Ledger:
    made = Ledger(0, "abc", start)
    for gap, (attempts, lost, taken, due) in states:
        entry = Entry(made, made.next + gap, attempts + taken, lost, due)
        entry.stage = Stage.HELD if taken else Stage.WAITING
        made.begin(entry)
    return made


@given(st.integers(0, 2**40), st.lists(st.tuples(st.integers(0, 3), STATES), max_size=300), st.integers(0, 2**40))
def test_a_ledger_is_read_as_it_was_written(
    start: int, states: list[tuple[int, tuple[int, int, bool, float]]], floor: int
) -> None:
    written = ledger(start, states)
    written.floor = floor
    read = load(0, "abc", written.watermark, written.text())
    assert (read.next, read.floor, read.watermark) == (written.next, floor, written.watermark)
    assert list(read.undone) == list(written.undone)
    for offset, entry in written.undone.items():
        found = read.undone[offset]
        assert (found.attempts, found.due, found.lent) == (entry.attempts, entry.due, entry.taken)
        assert found.lost == entry.lost + entry.taken


@pytest.mark.parametrize("seed", range(5))
def test_as_much_as_may_be_begun_fits_beside_an_offset(seed: int) -> None:
    chance = random.Random(seed)
    made = Ledger(0, "abcdefgh", 2**40)
    for place in range(2 * MOST):
        entry = Entry(made, made.next, 1)
        entry.stage = Stage.HELD
        made.begin(entry)
        if chance.random() < 0.5 and place:
            made.finish(entry)
    while len(made.undone) > MOST:
        made.undone.popitem()
    assert len(made.text()) <= LIMIT


def test_what_was_committed_for_a_queue_that_is_gone_says_nothing() -> None:
    old = ledger(1000, [(0, (0, 0, True, 0.0))])
    read = load(0, "new", old.watermark, old.text())
    assert (read.watermark, read.next, read.undone) == (0, 0, {})


def test_what_others_committed_is_taken_for_a_plain_offset() -> None:
    for text in ("", "by hand", "2;abc;0;1;"):
        assert load(0, "abc", 42, text).watermark == 42


def test_attempts_to_commit_are_few_however_long_the_servers_are_away() -> None:
    made = Ledger(0, "abc")
    for number in range(1000):
        for _ in range(3):
            made.attempt((number, ""))
    assert made.attempted[0] == (0, "")
    assert made.attempted[-1] == (999, "")
    assert len(made.attempted) < 110


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30, unique=True), st.randoms(use_true_random=False))
def test_what_was_finished_and_is_not_comes_back_to_its_place(offsets: list[int], chance: random.Random) -> None:
    made = Ledger(0, "abc")
    entries = [Entry(made, offset) for offset in sorted(offsets)]
    for entry in entries:
        made.begin(entry)
    again = chance.choice(entries)
    made.finish(again)
    made.resume(again)
    assert list(made.undone) == sorted(offsets)
    assert made.watermark == min(offsets)
    assert again.stage is Stage.WAITING
