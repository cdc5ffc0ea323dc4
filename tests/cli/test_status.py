"""The line at the bottom of a worker's terminal."""

from __future__ import annotations

import io

import pytest

from oncue.cli.status import Rate, StatusLine, describe
from oncue.worker import Counts


class Screen(io.StringIO):
    """A terminal as far as the line needs one: what is on its last line."""

    def last(self) -> str:
        line = ""
        for piece in self.getvalue().split("\n")[-1].split("\r"):
            erased = piece.removeprefix("\x1b[2K")
            line = erased if erased != piece else (line if not piece else piece + line[len(piece) :])
        return line.replace("\x1b[2m", "").replace("\x1b[0m", "")


def test_the_line_is_drawn_again_over_the_old_one() -> None:
    screen = Screen()
    line = StatusLine(screen)
    line.show("a long line")
    line.show("short")
    assert screen.last() == "short"


def test_what_is_printed_appears_above_and_the_line_comes_back() -> None:
    screen = Screen()
    line = StatusLine(screen)
    line.show("status")
    print("hello", file=line.beside(screen))
    assert screen.last() == ""
    assert "hello\n" in screen.getvalue()
    line.show("status")
    assert screen.last() == "status"


def test_an_unfinished_line_of_somebody_else_is_not_drawn_over() -> None:
    screen = Screen()
    line = StatusLine(screen)
    beside = line.beside(screen)
    beside.write("name? ")
    line.show("status")
    assert screen.last() == "name? "
    beside.write("Ada\n")
    line.show("status")
    assert screen.last() == "status"


def test_the_line_is_gone_when_it_was_cleared() -> None:
    screen = Screen()
    line = StatusLine(screen)
    line.show("status")
    line.clear()
    assert screen.last() == ""


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.of(0, 0.0) == 0.0
    assert rate.of(100, 1.0) == 100.0
    for second in range(2, 20):
        last = rate.of(100, float(second))
    assert last == 0.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(), "5/s   done 0   in flight 0"),
        (Counts(done=1234, retried=1, dead=2, in_flight=3, waiting=4), "5/s   done 1,234   retried 1   dead 2   in flight 3   waiting 4"),
    ],
)  # fmt: skip
def test_the_text_has_what_is_not_nothing(counts: Counts, expected: str) -> None:
    assert describe(counts, 5.0) == expected
