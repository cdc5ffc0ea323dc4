"""Failures: any exception can be described, whatever it does when it is looked at."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.failure import PARSING_ERROR, PROCESSING_ERROR, Failure


class BrokenText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class BrokenSignals(Exception):
    @property
    def retry_after(self) -> float:
        raise RuntimeError("no idea")

    @property
    def dead(self) -> bool:
        raise RuntimeError("no idea")


class NotEvenText(Exception):
    text: Any = 7

    def __str__(self) -> str:
        return self.text


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # whatever the case is about
        return caught


def with_signals(**signals: object) -> Exception:
    error = ValueError("bad")
    vars(error).update(signals)
    return error


def test_a_failure_has_the_errors_type_text_bases_and_traceback() -> None:
    failure = Failure.from_exception(raised(FileNotFoundError("gone")), code=PARSING_ERROR)
    assert (failure.code, failure.type, failure.message) == (PARSING_ERROR, "FileNotFoundError", "gone")
    assert failure.bases == ("OSError", "Exception", "BaseException")
    assert failure.traceback.endswith("FileNotFoundError: gone\n")
    assert "test_failure.py" in failure.traceback
    assert (failure.retry_after, failure.final) == (None, False)


def test_frames_that_are_not_the_users_can_be_left_out() -> None:
    error = raised(ValueError("bad"))
    assert "test_failure.py" not in Failure.from_exception(error, skip_frames=1).traceback
    assert Failure.from_exception(error, skip_frames=100).traceback == "ValueError: bad\n"


def test_causes_are_in_the_traceback() -> None:
    error = RuntimeError("outer")
    error.__cause__ = raised(KeyError("inner"))
    text = Failure.from_exception(error).traceback
    assert "KeyError: 'inner'" in text and "RuntimeError: outer" in text


@pytest.mark.parametrize(
    "error", [BrokenText(), BrokenSignals("x"), NotEvenText(), ExceptionGroup("many", [BrokenText()]), SystemExit(3)]
)
def test_an_error_that_breaks_when_looked_at_is_described_all_the_same(error: BaseException) -> None:
    failure = Failure.from_exception(raised(error))
    assert failure.type == type(error).__name__
    assert failure.traceback
    assert (failure.retry_after, failure.final) == (None, False)
    assert msgspec.json.decode(msgspec.json.encode(failure), type=Failure) == failure


def test_a_text_that_raises_is_named_by_what_it_raised() -> None:
    assert Failure.from_exception(BrokenText()).message == "<BrokenText whose text raised ValueError>"


@pytest.mark.parametrize(("given", "read"), [(5, 5.0), (0, 0.0), (0.25, 0.25), (1e300, 1e300)])
def test_the_wish_for_a_wait_is_read_off_any_error(given: object, read: float) -> None:
    assert Failure.from_exception(with_signals(retry_after=given)).retry_after == read


@pytest.mark.parametrize("given", [-1, float("nan"), float("inf"), True, "5", None, [], 10**400, -(10**400)])
def test_a_wish_that_is_no_number_of_seconds_is_none(given: object) -> None:
    assert Failure.from_exception(with_signals(retry_after=given)).retry_after is None


@pytest.mark.parametrize(("given", "final"), [(True, True), (False, False), (1, False), ("yes", False), (None, False)])
def test_only_a_plain_yes_makes_a_failure_final(given: object, final: bool) -> None:
    assert Failure.from_exception(with_signals(dead=given)).final is final


@given(st.text() | st.text(st.characters(categories=("Cs",)), max_size=3))
def test_every_text_can_be_stored_and_is_kept_where_it_can_be(text: str) -> None:
    failure = Failure.from_exception(raised(ValueError(text)))
    assert msgspec.json.decode(msgspec.json.encode(failure), type=Failure) == failure
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert failure.message == text


def test_the_default_code_is_that_of_users_code() -> None:
    assert Failure.from_exception(ValueError()).code == PROCESSING_ERROR
