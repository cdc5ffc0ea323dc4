"""The retry policy: how often, how soon, and which errors never."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.errors import InvalidValueError
from oncue.core.failure import PROCESSING_ERROR, Failure
from oncue.core.message import LONGEST_DELAY, check_delay
from oncue.core.outcome import Dead, Retry
from oncue.core.retry import RetryPolicy

POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 10**9),
    base=st.floats(0, 1e300) | st.integers(0, 10**6),
    factor=st.floats(1, 1e300) | st.integers(1, 10**6),
    cap=st.floats(0, LONGEST_DELAY),
    jitter=st.floats(0, 1),
)
ATTEMPTS = st.integers(1, 100) | st.integers(1, 10**18)
SURE = RetryPolicy(max_attempts=10**20, jitter=0.0)


def failure(**fields: Any) -> Failure:
    return Failure(PROCESSING_ERROR, **{"type": "ValueError", "message": "bad", **fields})


def delay(decided: Retry | Dead) -> float:
    assert isinstance(decided, Retry)
    assert decided.delay is not None
    return decided.delay


@given(POLICIES, ATTEMPTS, st.none() | st.floats(0, 1))
def test_every_wait_is_within_bounds_and_one_that_a_transport_takes(
    policy: RetryPolicy, attempt: int, uniform: float | None
) -> None:
    decided = policy.decide(attempt, failure(), uniform=uniform)
    if attempt >= policy.max_attempts:
        assert decided == Dead(failure())
        return
    longest = policy.backoff(attempt)
    assert longest <= policy.cap
    assert longest * (1 - policy.jitter) <= delay(decided) * (1 + 1e-9) and delay(decided) <= longest
    check_delay(delay(decided))


@given(POLICIES, st.integers(1, 2000))
def test_no_wait_is_shorter_than_the_one_before(policy: RetryPolicy, attempt: int) -> None:
    assert policy.backoff(attempt) <= policy.backoff(attempt + 1)


def test_waits_grow_by_the_factor_up_to_the_cap() -> None:
    policy = RetryPolicy(max_attempts=9, base=2.0, factor=3.0, cap=50.0, jitter=0.0)
    assert [delay(policy.decide(attempt, failure())) for attempt in range(1, 6)] == [2.0, 6.0, 18.0, 50.0, 50.0]


@pytest.mark.parametrize(("uniform", "wait"), [(0.0, 8.0), (0.5, 6.0), (1.0, 4.0)])
def test_jitter_shortens_by_up_to_its_fraction(uniform: float, wait: float) -> None:
    policy = RetryPolicy(max_attempts=9, base=8.0, jitter=0.5)
    assert delay(policy.decide(1, failure(), uniform=uniform)) == wait


def test_two_failures_at_once_do_not_come_back_at_once() -> None:
    assert len({delay(RetryPolicy().decide(1, failure())) for _ in range(100)}) > 90


@pytest.mark.parametrize("attempt", [1025, 10**6, 10**18])
def test_a_wait_beyond_all_numbers_is_the_cap_and_no_wait_stays_none(attempt: int) -> None:
    assert delay(SURE.decide(attempt, failure())) == 300.0
    none = RetryPolicy(max_attempts=10**20, base=0)
    assert delay(none.decide(attempt, failure())) == 0.0


@given(st.integers(1, 50))
def test_attempts_are_counted_with_the_first(most: int) -> None:
    policy = RetryPolicy(max_attempts=most)
    outcomes = [isinstance(policy.decide(attempt, failure()), Dead) for attempt in range(1, most + 3)]
    assert outcomes == [False] * (most - 1) + [True] * 3


@pytest.mark.parametrize("never", ["FileNotFoundError", FileNotFoundError, "OSError", OSError, "Exception"])
def test_an_error_that_is_never_retried_is_named_by_type_name_or_base(never: Any) -> None:
    policy = RetryPolicy(never=("KeyError", never))
    gone = Failure.from_exception(FileNotFoundError("gone"))
    assert policy.decide(1, gone) == Dead(gone)


@pytest.mark.parametrize("never", ["PermissionError", "filenotfounderror", "object", "FileNotFound"])
def test_other_names_do_not_stand_for_it(never: str) -> None:
    assert isinstance(RetryPolicy(never=(never,)).decide(1, Failure.from_exception(FileNotFoundError("x"))), Retry)


def test_policies_that_say_the_same_are_equal_and_can_be_keys() -> None:
    assert len({RetryPolicy(never=[ValueError]), RetryPolicy(never=("ValueError",))}) == 1


@given(POLICIES, st.floats(0, LONGEST_DELAY))
def test_a_wish_for_a_wait_is_taken_as_it_is(policy: RetryPolicy, wish: float) -> None:
    if policy.max_attempts > 1:
        assert delay(policy.decide(1, failure(retry_after=wish))) == wish


def test_no_wish_makes_a_wait_that_no_transport_takes() -> None:
    assert delay(SURE.decide(1, failure(retry_after=1e300))) == LONGEST_DELAY


def test_a_final_failure_is_dead_at_once_and_a_wish_does_not_add_attempts() -> None:
    final = failure(final=True, retry_after=5.0)
    assert SURE.decide(1, final) == Dead(final)
    wish = failure(retry_after=5.0)
    assert RetryPolicy(max_attempts=1).decide(1, wish) == Dead(wish)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"max_attempts": 0}, "retry.max_attempts is 0, expected a whole number, 1 or more"),
        ({"max_attempts": 1.5}, "retry.max_attempts is 1.5, expected a whole number"),
        ({"max_attempts": True}, "retry.max_attempts is True, expected a whole number"),
        ({"max_attempts": "3"}, "retry.max_attempts is '3', expected a whole number"),
        ({"base": -1}, "retry.base is -1, expected 0 or more seconds"),
        ({"base": math.inf}, "retry.base is inf"),
        ({"factor": 0.5}, "retry.factor is 0.5, expected 1 or more"),
        ({"factor": 10**400}, "retry.factor is 1000"),
        ({"cap": math.nan}, "retry.cap is nan"),
        ({"cap": 1e12}, "retry.cap is 1000000000000.0, expected 0 or more seconds, at most ten years"),
        ({"jitter": 1.1}, "retry.jitter is 1.1, expected a number from 0 to 1"),
        ({"jitter": None}, "retry.jitter is None"),
        ({"never": "ValueError"}, "retry.never is 'ValueError', expected error types or their names, in a tuple"),
        ({"never": ValueError}, "retry.never is <class 'ValueError'>, expected error types"),
        ({"never": (7,)}, "retry.never is"),
        ({"never": (int,)}, "retry.never is"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_the_fault(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        RetryPolicy(**fields)
    assert str(caught.value).startswith(fault)


def test_all_faults_of_a_policy_are_reported_at_once() -> None:
    with pytest.raises(InvalidValueError, match=r"retry.base .*; retry.cap .*; retry.jitter "):
        RetryPolicy(base=-1, cap=-1, jitter=-1)
