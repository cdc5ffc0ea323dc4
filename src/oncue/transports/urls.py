"""Reads the URLs of brokers: hosts, and parameters that are known by name. Pure; for transports, those of other packages too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from oncue.core.errors import InvalidValueError
from oncue.core.redact import redact_url

Reader = Callable[[str], Any]
"""Makes a value of a parameter's text, or raises `ValueError` that says what was expected."""


def wrong(url: str, reason: str) -> InvalidValueError:
    """What to raise for a URL that cannot be used; no secret of it is shown."""
    return InvalidValueError(f"transport {redact_url(url)!r}: {reason}")


def hosts(url: str, places: str, port: int) -> tuple[tuple[str, int], ...]:
    """The hosts of `host[:port][,host[:port]…]`, `localhost` where there is none. Raise `InvalidValueError`."""
    return tuple(_host(url, place, port) for place in (places or "localhost").split(","))


def parameters(url: str, query: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of what stands behind the `?`. Raise `InvalidValueError`, also for a name that is not among `readers`."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        read = readers.get(name)
        if read is None:
            raise wrong(url, f"unknown parameter {name!r}; known are {', '.join(readers)}")
        try:
            found[name] = read(value)
        except ValueError as error:
            raise wrong(url, f"parameter {name!r}: {error}") from None
    return found


def text(value: str) -> str:
    """Anything but nothing."""
    if not value:
        raise ValueError("expected something")
    return value


def seconds(most: float) -> Reader:
    """More than 0 seconds, and less than `most`."""

    def read(value: str) -> float:
        found = float(value)
        if not 0 < found < most:
            raise ValueError("expected seconds, more than 0")
        return found

    return read


def one_of(*words: str) -> Reader:
    """One of these words."""

    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"expected {' or '.join(map(repr, words))}")
        return value

    return read


def _host(url: str, place: str, port: int) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{place}")
        return found.hostname or "localhost", found.port or port
    except ValueError:
        raise wrong(url, f"expected a host and perhaps a port, not {place!r}") from None
