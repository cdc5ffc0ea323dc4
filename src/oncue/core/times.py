"""Durations and moments as texts: what people write in settings and options, and what headers carry."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from functools import lru_cache

from oncue.core.errors import InvalidValueError

DURATION_FORM = "seconds, or a text like 250ms, 90s, 5m, 1h30m or 7d"

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)


def finite(value: object) -> float | None:
    """`value` as a float if it is a finite number; None for all else, texts and truth values among them."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the largest float
        return None


def shown(value: object) -> str:
    """`value` in an error's text. Python writes out no whole number of more than some thousand digits."""
    try:
        return repr(value)
    except ValueError:
        return "a whole number of thousands of digits"


def parse_duration(value: object) -> float:
    """Seconds from a number of them or a text (`90`, `1.5`, `250ms`, `5m`, `1m30s`, `7d`).

    Raise `InvalidValueError` for anything else: negative, not finite, empty, of an unknown unit.
    """
    seconds = _seconds(value)
    if seconds is None or seconds < 0:
        raise InvalidValueError(f"{shown(value)} is not a duration: expected {DURATION_FORM}")
    return seconds


def _seconds(value: object) -> float | None:
    if not isinstance(value, str):
        return finite(value)
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return finite(float(text))
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return finite(sum(float(number) * _UNITS[unit] for number, unit in parts))


def format_duration(seconds: float) -> str:
    """A duration as a person writes it: `250ms`, `30s`, `1m30s`, `7d`; `parse_duration` reads it back to the millisecond."""
    millis = round(seconds * 1000)
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        count, millis = divmod(millis, size)
        if count:
            parts.append(f"{count}{unit}")
    if millis:
        parts.append(f"{millis // 1000}s" if millis % 1000 == 0 else f"{millis / 1000:.3f}".rstrip("0") + "s")
    return "".join(parts)


def go_duration(seconds: float) -> str:
    """A duration as programs in Go print it, which Asya's texts have: `250ms`, `2s`, `5m0s`, `1h0m0s`."""
    if seconds < 1:
        return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms" if seconds else "0s"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text


def timestamp(moment: datetime | None = None) -> str:
    """`moment`, or now, in UTC as RFC 3339 with milliseconds: `2026-11-24T09:14:54.120Z`."""
    if moment is None:
        return _millisecond(time.time_ns() // 1_000_000)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@lru_cache(1)
def _millisecond(count: int) -> str:
    """So many milliseconds after 1970 began; one that many messages were sent in is written once."""
    seconds, millis = divmod(count, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03d}Z"


def parse_timestamp(text: str | None) -> datetime | None:
    """The moment that an RFC 3339 text names; None when it is absent, is no such text, or has no time zone."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):  # the first and the last day of the calendar are not in every zone
        return None
