"""The kinds of value a setting can have: how each is read from a text or from YAML, and how it is described."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from oncue.core.times import DURATION_FORM, format_duration, parse_duration

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII)
_PREFIX = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_ACTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", re.ASCII)
_FOLDER = re.compile(r"[^\0]+")
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^\0/]+")
_METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*", re.ASCII)
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_METRIC_TYPES = frozenset({"counter", "gauge", "histogram"})
_HTTP = re.compile(r"https?://[^\s/?#]+[^\s?#]*", re.IGNORECASE)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):(?P<port>[0-9]{1,5})", re.ASCII)


class Kind(msgspec.Struct, frozen=True):
    """`read` returns the value of a raw one (a text, or what YAML made of it), or raises `ValueError` when it is none.

    `expected` completes the sentence "expected …". `blank` says that an empty text is a value of its own and not the same
    as none given.
    """

    expected: str
    read: Callable[[object], Any]
    show: Callable[[Any], str] = str
    blank: bool = False


def _text(raw: object) -> str:
    if not isinstance(raw, str) or "\0" in raw:
        raise ValueError
    return raw.strip()


def _url(raw: object) -> str:
    text = _text(raw)
    if not _SCHEME.match(text):
        raise ValueError
    return text


def _optional_url(raw: object) -> str:
    return _url(raw) if _text(raw) else ""


def _prefix(raw: object) -> str:
    text = _text(raw)
    if not _PREFIX.fullmatch(text):
        raise ValueError
    return text


def _flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    text = _text(raw).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _address(raw: object) -> str:
    text = _text(raw)
    found = _ADDRESS.fullmatch(text)
    if text and (found is None or int(found["port"]) > 65535):
        raise ValueError
    return text


def _whole(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    text = _text(raw)
    if not _WHOLE.fullmatch(text):
        raise ValueError
    return int(text)


def _matching(form: re.Pattern[str]) -> Callable[[object], str]:
    def read(raw: object) -> str:
        text = _text(raw)
        if not form.fullmatch(text):
            raise ValueError
        return text

    return read


def _http_url(raw: object) -> str:
    text = _text(raw)
    if text and not _HTTP.fullmatch(text):
        raise ValueError
    return text.rstrip("/")


class CustomMetric(msgspec.Struct, frozen=True):
    """A metric that is only declared: `labels` are the names of its labels."""

    name: str
    type: str
    help: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None


def _custom_metrics(raw: object) -> tuple[CustomMetric, ...]:
    kind = tuple[CustomMetric, ...]
    try:
        found = msgspec.json.decode(raw, type=kind) if isinstance(raw, str) else msgspec.convert(raw, kind)
    except msgspec.MsgspecError:
        raise ValueError from None
    metrics = tuple(
        msgspec.structs.replace(each, name=_metric_name(each.name), type=each.type.lower()) for each in found
    )
    names = {each.name for each in metrics}
    if len(names) < len(metrics) or any(each.type not in _METRIC_TYPES for each in metrics):
        raise ValueError
    if not all(_LABEL.fullmatch(label) for each in metrics for label in each.labels):
        raise ValueError
    return metrics


def _metric_name(name: str) -> str:
    """`name` as Asya makes one of Prometheus' out of it."""
    plain = re.sub(r"[^a-zA-Z0-9_:]", "_", name)
    if not plain:
        raise ValueError
    return f"_{plain}" if plain[0].isdigit() else plain


def _show_flag(value: bool) -> str:
    return "true" if value else "false"


def choice(*values: str, aliases: dict[str, str] | None = None) -> Kind:
    """One of `values`, in letters of any case; each key of `aliases` stands for the value next to it."""
    others = aliases or {}

    def read(raw: object) -> str:
        text = _text(raw).lower()
        text = others.get(text, text)
        if text not in values:
            raise ValueError
        return text

    return Kind("one of " + ", ".join(values), read)


def whole(least: int, most: int) -> Kind:
    """A whole number from `least` to `most`."""

    def read(raw: object) -> int:
        number = _whole(raw)
        if not least <= number <= most:
            raise ValueError
        return number

    return Kind(f"a whole number from {least} to {most}", read)


def duration(least: float = 0.0) -> Kind:
    """Seconds, at least `least` and at most a hundred years."""

    def read(raw: object) -> float:
        seconds = parse_duration(raw)
        if not least <= seconds <= 100 * 365 * 86400 or not math.isfinite(seconds):
            raise ValueError
        return seconds

    bound = f", at least {format_duration(least)}" if least else ""
    return Kind(DURATION_FORM + bound, read, format_duration)


URL = Kind("a URL such as sqlite:///jobs.db, memory: or redis://host:6379/0", _url)
OPTIONAL_URL = Kind("a URL such as sqlite:///results.db, or nothing", _optional_url, blank=True)
PREFIX = Kind("up to 64 letters, digits, '.', '-' or '_', the first a letter or digit", _prefix, blank=True)
FLAG = Kind("true or false", _flag, _show_flag)
ADDRESS = Kind("HOST:PORT or :PORT with a port up to 65535, or nothing", _address, blank=True)
RESULTS_URL = Kind("a URL such as sqlite:///results.db or s3://bucket/prefix, or nothing", _optional_url, blank=True)
HTTP_URL = Kind("a URL such as http://gateway:8080, or nothing", _http_url, blank=True)
ACTOR = Kind("up to 120 letters, digits, '.', '-' or '_', the first a letter or digit", _matching(_ACTOR))
FOLDER = Kind("the path of a folder", _matching(_FOLDER))
FILE_NAME = Kind("a file name without '/'", _matching(_FILE_NAME))
METRIC = Kind("letters, digits, '_' or ':', the first no digit", _matching(_METRIC))
CUSTOM_METRICS = Kind(
    'a JSON array of metrics such as [{"name": "x", "type": "counter", "help": "…", "labels": []}], each name once, each '
    "type one of counter, gauge, histogram",
    _custom_metrics,
    lambda metrics: msgspec.json.encode(metrics).decode() if metrics else "",
)
