"""What a URL says: whose queues, where, as whom, and how they are used."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.transports.urls import Reader, one_of, parameters, seconds, text, wrong

EMULATOR = "PUBSUB_EMULATOR_HOST"
"""The variable by which Google's own tools know that there is an emulator."""
LARGEST = 10_000_000
"""Bytes that the service takes in one call, and in one message."""
_RESERVED = 200_000
"""Bytes of a message that are left to its id, key and headers."""
_PROJECT = re.compile(r"(?:[a-z][a-z0-9.-]{0,61}:)?[a-z][a-z0-9-]{0,61}[a-z0-9]", re.ASCII)
_PLACE = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}", re.ASCII)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    emulator: host and port of one, which is spoken to without TLS and without credentials.
    endpoint: host and port of another door of the service than its global one. credentials: file of a service account; none are
    what Google's own tools would use. wait: seconds that an idle consumer lets the service wait for a message.
    timeout: seconds that it may take to answer. attempts: how often a message may be delivered before the service itself puts
    it aside, from 5 to 100. depth: whether Cloud Monitoring's counts are shown; monitoring: its URL, if not Google's own.
    ca: file of certificates to trust.
    """

    project: str
    emulator: str | None = None
    endpoint: str | None = None
    credentials: str | None = None
    wait: float = 5.0
    timeout: float = 10.0
    attempts: int = 100
    depth: str = "none"
    monitoring: str | None = None
    ca: str | None = None

    @property
    def counts(self) -> bool:
        """Whether there is somebody who counts messages; nobody does for an emulator."""
        return self.depth == "approximate" and self.emulator is None

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        place = self.emulator or self.endpoint
        return f"pubsub://{self.project}" + (f" at {place}" if place else "")

    @property
    def max_body(self) -> int:
        return LARGEST - _RESERVED


def parse(url: str) -> Address:
    """Read `pubsub://project[?emulator=…]`; raise `InvalidValueError`."""
    parts = urlsplit(url)
    if not _PROJECT.fullmatch(parts.netloc):
        raise wrong(url, "expected the id of a project after '//', as in 'pubsub://my-project'")
    if parts.path not in {"", "/"}:
        raise wrong(url, f"expected nothing between the project and '?', not {parts.path!r}")
    options = parameters(url, parts.query, _READERS)
    if "emulator" in options:
        for other in ("endpoint", "credentials", "ca"):
            if other in options:
                raise wrong(url, f"an emulator needs no {other}")
    elif "endpoint" not in options and os.environ.get(EMULATOR):
        try:
            options["emulator"] = _place(os.environ[EMULATOR])
        except ValueError as error:
            raise InvalidValueError(f"variable {EMULATOR}: {error}") from None
    return Address(project=parts.netloc, **options)


def _place(value: str) -> str:
    if not _PLACE.fullmatch(value) or not 0 < int(value.rpartition(":")[2]) < 65_536:
        raise ValueError("expected a host and a port, such as localhost:8085")
    return value


def _web(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
        raise ValueError("expected a URL such as https://monitoring.googleapis.com")
    return value.rstrip("/")


def _attempts(value: str) -> int:
    if not value.isascii() or not value.isdecimal() or not 5 <= int(value) <= 100:
        raise ValueError("expected how often a message may be delivered, from 5 to 100")
    return int(value)


_READERS: Mapping[str, Reader] = {
    "emulator": _place,
    "endpoint": _place,
    "credentials": text,
    "wait": seconds(91),
    "timeout": seconds(600),
    "attempts": _attempts,
    "depth": one_of("none", "approximate"),
    "monitoring": _web,
    "ca": text,
}
