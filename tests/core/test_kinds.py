"""Kinds of settings: what each reads, what it refuses, and that it reads what it shows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.kinds import ADDRESS, FLAG, OPTIONAL_URL, PREFIX, URL, Kind, choice, duration, whole
from oncue.core.times import finite, format_duration, parse_timestamp, timestamp

LEVEL = choice("debug", "info", aliases={"verbose": "debug"})
KINDS = [URL, OPTIONAL_URL, PREFIX, FLAG, ADDRESS, LEVEL, whole(1, 1024), duration(), duration(1.0)]


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (URL, " memory: ", "memory:"),
        (OPTIONAL_URL, "", ""),
        (OPTIONAL_URL, "sqlite:///a b.db", "sqlite:///a b.db"),
        (PREFIX, "", ""),
        (PREFIX, "team-a.", "team-a."),
        (FLAG, "Yes", True),
        (FLAG, "0", False),
        (FLAG, False, False),
        (ADDRESS, "", ""),
        (ADDRESS, ":0", ":0"),
        (ADDRESS, "[::1]:9090", "[::1]:9090"),
        (LEVEL, "DEBUG", "debug"),
        (LEVEL, "Verbose", "debug"),
        (whole(1, 1024), "1024", 1024),
        (whole(1, 1024), 1, 1),
        (whole(-5, 5), "-5", -5),
        (duration(), "1h30m", 5400.0),
        (duration(1.0), 1, 1.0),
    ],
)
def test_a_value_is_read(kind: Kind, raw: object, value: object) -> None:
    assert kind.read(raw) == value
    assert type(kind.read(raw)) is type(value)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (URL, ""),
        (URL, "/jobs.db"),
        (URL, "me\0mory:"),
        (URL, 7),
        (OPTIONAL_URL, "jobs.db"),
        (PREFIX, "-a"),
        (PREFIX, "a" * 65),
        (PREFIX, "a\nb"),
        (FLAG, "maybe"),
        (FLAG, 1),
        (FLAG, ""),
        (ADDRESS, "9090"),
        (ADDRESS, ":65536"),
        (ADDRESS, "a b:1"),
        (ADDRESS, 9090),
        (LEVEL, "info,"),
        (LEVEL, None),
        (whole(1, 1024), 0),
        (whole(1, 1024), "1.0"),
        (whole(1, 1024), 1.0),
        (whole(1, 1024), True),
        (whole(1, 1024), "\N{ARABIC-INDIC DIGIT ONE}"),
        (whole(1, 1024), "9" * 5000),
        (duration(1.0), "999ms"),
        (duration(), "101000d"),
        (duration(), "9" * 400),
        (duration(), "9" * 400 + "d"),
        (duration(), 10**400),
        (duration(), math.nan),
    ],
)
def test_what_is_no_value_is_refused(kind: Kind, raw: object) -> None:
    with pytest.raises(ValueError):
        kind.read(raw)


@given(
    st.sampled_from(KINDS),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers()),
)
def test_anything_is_a_value_that_reads_back_as_it_is_shown_or_is_refused(kind: Kind, raw: object) -> None:
    try:
        value = kind.read(raw)
    except ValueError:
        return
    again = kind.read(kind.show(value)) if value != "" or kind.blank else value
    assert again == pytest.approx(value, abs=0.0006) if isinstance(value, float) else again == value


def test_each_kind_says_what_it_expects() -> None:
    for kind in KINDS:
        assert kind.expected and not kind.expected.endswith(".")
    assert duration(1.0).expected.endswith("at least 1s")
    assert LEVEL.expected == "one of debug, info"


@given(st.floats() | st.integers())
def test_finite_numbers_are_told_from_others(number: float) -> None:
    assert finite(number) == (float(number) if math.isfinite(number) else None)


@pytest.mark.parametrize("value", [True, "1", None, b"1", 1j, 10**400, math.inf, math.nan])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert finite(value) is None


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (0.0001, "0s"), (0.25, "250ms"), (90, "1m30s"), (61.5, "1m1.5s"), (604800, "7d")]
)
def test_durations_are_shown_as_people_write_them(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_that_utc_does_not_have_is_none(text: str) -> None:
    assert parse_timestamp(text) is None


@given(st.datetimes(timezones=st.timezones()))
def test_every_moment_that_is_written_is_read_to_the_millisecond(moment: object) -> None:
    try:
        written = timestamp(moment)  # type: ignore[arg-type]
    except OverflowError:
        return  # a first or last day that UTC does not have
    read = parse_timestamp(written)
    assert read is not None
    assert 0 <= (moment - read).total_seconds() < 0.001  # type: ignore[operator]


@given(st.text(max_size=40) | st.from_regex(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?\Z"))
def test_any_text_is_a_moment_or_none(text: str) -> None:
    moment = parse_timestamp(text)
    assert moment is None or moment.tzinfo is not None
