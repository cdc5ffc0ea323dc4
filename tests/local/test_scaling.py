"""How many replicas: KEDA's formula, at once from none, down only after the cooldown. Time is whatever the test says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.local.scaling import Scale
from oncue.manifests import Scaling


def scale(**more: int) -> Scale:
    return Scale(
        Scaling(enabled=True, **{"most": 10, "polling": 10, "cooldown": 60, "queue_length": 5, **more}), replicas=7
    )


@pytest.mark.parametrize(("waiting", "wanted"), [(0, 0), (1, 1), (5, 1), (6, 2), (50, 10), (51, 10), (10**9, 10)])
def test_a_replica_is_wanted_for_each_queue_length_that_waits(waiting: int, wanted: int) -> None:
    assert scale().wanted(waiting, 0.0) == wanted


def test_the_least_is_always_wanted_and_never_fewer() -> None:
    actor = scale(least=2)
    assert [actor.wanted(waiting, now) for now, waiting in ((0.0, 0), (10.0, 40), (11.0, 0), (500.0, 0))] == [
        2,
        8,
        8,
        2,
    ]


def test_without_scaling_the_number_is_fixed_whatever_waits() -> None:
    actor = Scale(Scaling(enabled=False, least=0, most=50), replicas=3)
    assert not actor.elastic
    assert [actor.wanted(waiting, 0.0) for waiting in (0, 1, 1000, None)] == [3, 3, 3, 3]


def test_the_first_replica_comes_at_once_and_more_only_at_the_next_poll() -> None:
    actor = scale()
    assert actor.wanted(0, 0.0) == 0
    assert actor.wanted(3, 0.1) == 1
    assert actor.wanted(30, 0.2) == 1
    assert actor.wanted(30, 10.0) == 1
    assert actor.wanted(30, 10.1) == 6


def test_it_goes_down_to_the_most_that_was_wanted_within_the_cooldown() -> None:
    actor = scale()
    assert actor.wanted(30, 0.0) == 6
    assert actor.wanted(10, 20.0) == 6
    assert actor.wanted(10, 59.9) == 6
    assert actor.wanted(10, 61.0) == 2


def test_it_goes_to_zero_when_nothing_has_waited_for_the_whole_cooldown() -> None:
    actor = scale(cooldown=30)
    assert actor.wanted(1, 0.0) == 1
    assert actor.wanted(0, 29.9) == 1
    assert actor.wanted(0, 30.1) == 0
    assert actor.wanted(1, 30.2) == 1


def test_work_that_comes_between_two_polls_keeps_a_replica_awake() -> None:
    actor = scale(polling=100, cooldown=10)
    assert actor.wanted(1, 0.0) == 1
    for second in range(1, 60):
        assert actor.wanted(second % 5 == 0, float(second)) == 1
    assert actor.wanted(0, 66.0) == 0


def test_a_cooldown_of_zero_ends_a_replica_with_the_last_message() -> None:
    actor = scale(cooldown=0)
    assert actor.wanted(1, 0.0) == 1
    assert actor.wanted(0, 0.1) == 0


def test_where_the_broker_cannot_tell_one_replica_looks_after_the_queue() -> None:
    actor = scale()
    assert [actor.wanted(None, now) for now in (0.0, 100.0, 200.0)] == [1, 1, 1]


@given(
    looks=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 200) | st.none()), max_size=40),
    least=st.integers(0, 3),
    most=st.integers(3, 8),
    cooldown=st.integers(0, 100),
    polling=st.integers(1, 60),
)
def test_the_number_stays_between_least_and_most_and_is_never_zero_while_something_waits(
    looks: list[tuple[float, int | None]], least: int, most: int, cooldown: int, polling: int
) -> None:
    actor = scale(least=least, most=most, cooldown=cooldown, polling=polling)
    now = 0.0
    for pause, waiting in looks:
        now += pause
        wanted = actor.wanted(waiting, now)
        assert least <= wanted <= most
        assert wanted or waiting == 0
