"""The campaign against `oncue up`: it counts rightly, and a short one comes out even."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from campaign.up.ledger import UNBORN, End, faults, results_faults

ROOT = Path(__file__).parents[2]
PLAIN, SHAKY, FAN_OUT, BAD, POISON = 0, 1, 3, 7, 99


def happy(number: int, item: int = 0, id: str = "") -> list[End]:
    return [End("happy", id or f"{number}-{item}", (0, number, item))]


def failed(number: int, item: int, code: str) -> list[End]:
    name, note = f"{number}-{item}", (0, number, item)
    return [End("error", name, note, code), End("dead", name, note)]


def complete() -> list[End]:
    """Each kind of message once, ended as it may."""
    fan_out = [*happy(FAN_OUT, 0), *happy(FAN_OUT, 1), *failed(FAN_OUT, 2, "crash_error")]
    bad = failed(BAD, UNBORN, "processing_error")
    return [*happy(PLAIN), *failed(SHAKY, UNBORN, "processing_error"), *fan_out, *bad, *failed(POISON, 0, "exit_error")]


def found(ends: Sequence[End], *more: int) -> str:
    sent = {(0, number) for number in (PLAIN, SHAKY, FAN_OUT, BAD, POISON, *more)}
    return "\n".join(faults(sent, ends))


def test_what_has_ended_as_it_may_has_no_faults() -> None:
    assert not found(complete())


def test_a_fan_out_that_fails_before_it_fans_out_is_one_failed_message() -> None:
    assert not found([*complete(), *failed(13, UNBORN, "crash_error")], 13)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (happy(PLAIN), "not ended once: item 0 of 0"),
        (failed(PLAIN, 0, "crash_error"), "not ended once: item 0 of 0"),
        (failed(POISON, 0, "exit_error"), "not ended once: item 0 of 99"),
        (failed(POISON, 0, "exit_error")[1:], "not ended once: item 0 of 99"),
        (happy(PLAIN, 1), "invented: item 1 of 0"),
        (happy(PLAIN, UNBORN), "invented: item -1 of 0"),
        (happy(23), "invented: (0, 23)"),
    ],
)
def test_an_end_too_many_is_a_fault(more: list[End], fault: str) -> None:
    assert fault in found([*complete(), *more])


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        (0, "lost: item 0 of 0"),
        (1, "not ended once: item -1 of 1"),
        (2, "not ended once: item -1 of 1"),
        (3, "lost: item 0 of 3"),
        (-1, "not ended once: item 0 of 99"),
    ],
)
def test_an_end_that_is_missing_is_a_fault(place: int, fault: str) -> None:
    ends = complete()
    del ends[place]
    assert fault in found(ends)


@pytest.mark.parametrize(
    ("number", "ends", "fault"),
    [
        (17, happy(17), "good though it is bad"),
        (399, happy(399), "good though it is bad"),
        (10, failed(10, 0, "processing_error"), "failed though its handler did not"),
        (10, happy(10, UNBORN), "ended before its first actor"),
        (10, [failed(10, 0, "crash_error")[0], End("dead", "another", (0, 10, 0))], "not of one id"),
        (10, [], "lost: item 0 of 10"),
    ],
)
def test_a_wrong_end_is_a_fault(number: int, ends: list[End], fault: str) -> None:
    assert fault in found([*complete(), *ends], number)


def test_results_are_those_of_the_ends() -> None:
    ends = [*happy(1), *failed(2, 0, "crash_error")]
    kept = [("1-0", "succeeded"), ("2-0", "failed")]
    assert not list(results_faults(ends, kept))
    assert "no result is kept of ('2-0', 'failed')" in results_faults(ends, kept[:1])
    assert "a result of nothing that ended: ('3-0', 'failed')" in results_faults(ends, [*kept, ("3-0", "failed")])
    assert "kept 2 times: ('1-0', 'succeeded')" in results_faults(ends, [*kept, kept[0]])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [[], ["--isolate"]], ids=["one process", "isolate"])
def test_a_short_campaign_comes_out_even(how: list[str]) -> None:
    command = [sys.executable, "-m", "tests.campaign", "--up", "--minutes", "0.15", "--seed", "5", *how]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with seed 5" in done.stdout and "all accounted for" in done.stdout
