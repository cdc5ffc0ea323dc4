"""The table of actors: what it shows of each, rates, and why an actor cannot start."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from oncue.events import BrokerLost, MessageDead, MessageDone, MessageRetried
from oncue.local.state import ActorReport
from oncue.local.table import Rates, render
from oncue.local.tally import QueueTally


def report(name: str, **more: Any) -> ActorReport:
    given: dict[str, Any] = {"state": "running", "replicas": 1, "wanted": 1, "ready": 0, "leased": 0, "delayed": 0, "dead": 0, "done": 0, "errors": 0}  # fmt: skip
    return ActorReport(name=name, **{**given, **more})


def lines(
    *reports: ActorReport, rates: Rates | None = None, now: float = 0.0, width: int = 100, height: int = 50
) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=width).print(render(reports, rates or Rates(), now, width, height))
    return [line.split() for line in out.getvalue().splitlines()]


def test_each_actor_has_a_line_with_its_counts() -> None:
    shown = lines(
        report("a", replicas=2, wanted=3, ready=1234, leased=5, delayed=6, dead=7, errors=8),
        report("happy-end", built_in=True),
    )
    assert shown[0] == ["ACTOR", "STATE", "REPLICAS", "READY", "LEASED", "DELAYED", "DEAD", "RATE", "ERRORS"]
    assert shown[1] == ["a", "running", "2/3", "1,234", "5", "6", "7", "0/s", "8"]
    assert shown[2] == ["happy-end", "running", "built", "in", "0", "0", "0", "0", "0/s", "0"]


def test_what_nobody_can_tell_is_not_made_up() -> None:
    shown = lines(report("a", ready=None, leased=None, delayed=None, dead=None, done=None, errors=None))
    assert shown[1] == ["a", "running", "1/1", "?", "?", "?", "?", "-", "?"]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rates = Rates()
    assert rates.of(report("a", done=100), 0.0) == 0.0
    assert rates.of(report("a", done=300), 2.0) == 100.0
    for second in range(3, 9):
        rates.of(report("a", done=300), float(second))
    assert rates.of(report("a", done=300), 9.0) == 0.0
    assert rates.of(report("b", done=5), 9.0) == 0.0


def test_an_actor_that_cannot_start_says_why_in_one_line_that_cannot_forge_others() -> None:
    shown = lines(report("a", state="failing", error="no module\x1b[2J named\nb: x" + "y" * 200), width=60)
    assert shown[-1][:4] == ["a:", "no", "module", "[2J"]
    assert shown[-2][0] == "a"


def test_a_long_name_is_cut_before_any_number_is() -> None:
    shown = lines(report("a" * 63, ready=1234567), report("b"), width=80)
    assert shown[0] == ["ACTOR", "STATE", "REPLICAS", "READY", "LEASED", "DELAYED", "DEAD", "RATE", "ERRORS"]
    assert shown[1][0].endswith("aaa…")
    assert shown[1][1:] == ["running", "1/1", "1,234,567", "0", "0", "0", "0/s", "0"]
    assert shown[2][0] == "b"


def test_where_not_all_fit_those_with_nothing_to_do_are_left_out_first() -> None:
    idle = [report(f"idle{number}", state="idle", replicas=0, wanted=0) for number in range(30)]
    busy, broken, waiting = (
        report("busy"),
        report("broken", state="failing", error="no such module"),
        report("w", ready=1),
    )
    shown = lines(*idle[:29], busy, broken, waiting, idle[29], report("happy-end", built_in=True), height=10)
    assert len(shown) == 9  # and the cursor's line
    assert [line[0] for line in shown[1:]] == ["idle0", "idle1", "busy", "broken", "w", "happy-end", "broken:", "and"][
        -8:
    ]
    assert shown[-1] == ["and", "28", "more;", "oncue", "ps", "lists", "all"]


def test_failed_attempts_and_letters_count_as_errors_and_the_last_one_is_kept() -> None:
    tally = QueueTally()
    tally(MessageDone("q", "1", 1, 0.1, 0))
    tally(MessageRetried("q", "2", 1, 0.1, 1.0, "ValueError: first"))
    tally(MessageDead("q", "2", 2, 0.1, "ValueError: last"))
    tally(BrokerLost("q", "gone"))
    count = tally.of("q")
    assert (count.done, count.errors, count.error) == (1, 2, "ValueError: last")
    assert tally.of("other").done == 0
