"""Messages and sends: which names and delays may be asked for."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.errors import InvalidValueError
from oncue.core.message import LONGEST_DELAY, Message, Send, check_delay, check_queue_name, new_id
from oncue.core.retry import RetryPolicy

LETTERS = string.ascii_letters + string.digits


@given(st.text(LETTERS, min_size=1, max_size=1), st.text(LETTERS + "._-", max_size=127))
def test_a_queue_name_of_plain_characters_is_good(first: str, rest: str) -> None:
    assert check_queue_name(first + rest) == first + rest


@given(st.text(max_size=140))
def test_every_other_queue_name_is_refused(name: str) -> None:
    good = 1 <= len(name) <= 128 and set(name) <= set(LETTERS + "._-") and name[0] in LETTERS
    if good:
        assert check_queue_name(name) == name
    else:
        with pytest.raises(InvalidValueError, match="expected 1 to 128 letters"):
            check_queue_name(name)


@pytest.mark.parametrize(
    "name", ["", "a\n", "-a", ".", "a/b", "a b", "é", "a" * 129, "\N{ARABIC-INDIC DIGIT ONE}", "a\0"]
)
def test_queue_names_that_some_store_would_change_are_refused(name: str) -> None:
    with pytest.raises(InvalidValueError):
        check_queue_name(name)


@given(st.floats(0, LONGEST_DELAY) | st.integers(0, int(LONGEST_DELAY)))
def test_a_delay_of_up_to_ten_years_is_good(delay: float) -> None:
    assert check_delay(delay) == delay
    assert isinstance(check_delay(delay), float)


@pytest.mark.parametrize(
    "delay", [math.nan, math.inf, -math.inf, True, False, "5", None, b"5", [], 1j, 10**400, -(10**400)]
)
def test_what_is_no_number_of_seconds_is_refused(delay: object) -> None:
    with pytest.raises(InvalidValueError, match="expected a number of seconds"):
        check_delay(delay)


def test_a_number_too_long_to_be_written_out_is_refused_in_words() -> None:
    with pytest.raises(InvalidValueError, match="a whole number of thousands of digits"):
        check_delay(10**5000)
    with pytest.raises(InvalidValueError, match="a whole number of thousands of digits"):
        RetryPolicy(cap=10**5000)


@pytest.mark.parametrize(("delay", "expected"), [(-1e-9, "0 or more"), (-1, "0 or more"), (1e9, "at most ten years")])
def test_a_delay_out_of_bounds_is_refused_with_the_bound(delay: float, expected: str) -> None:
    with pytest.raises(InvalidValueError, match=expected):
        check_delay(delay)


def test_messages_and_sends_are_values_that_cannot_be_changed() -> None:
    message = Message(b"x", "a")
    assert message == Message(b"x", "a", {}, None)
    with pytest.raises(AttributeError):
        message.body = b"y"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Send("q", message).delay = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        message.headers["a"] = "b"  # type: ignore[index]


def test_ids_are_new_each_time() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
