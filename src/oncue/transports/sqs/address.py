"""What a URL says: where the queues are, as whom, and how they are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from oncue.transports.urls import Reader, one_of, parameters, seconds, text, wrong

LONGEST = 43_200
"""Seconds that the service lets a message be held in all."""
_MARGIN = 60.0
"""The service's clock began before ours."""
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_ROLE = re.compile(r"arn:[a-z0-9-]+:iam::\d{12}:role/.+", re.ASCII)
_EXTERNAL = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)
_DIGITS = re.compile(r"\d{12}", re.ASCII)
_RESERVED = 16_384
"""Bytes of a message that are left to its id, key and headers."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    region: where the queues are; None is what AWS' own settings say. endpoint: the URL of another server than the region's.
    key, secret, token: credentials; none are what AWS' own chain finds. profile: one of its profiles.
    role: one that is taken on first, with `external` as its external id, asked for at `sts`.
    account: whose queues are used, when it is another's.
    visibility: seconds that a lease lasts at least. hold: seconds that a message can be held in all.
    wait: seconds that an idle consumer lets the service wait for a message. timeout: seconds that it may take to answer.
    size: bytes of a message with its headers, and of a batch. redrive: after how many receipts the service itself moves a
    message to the dead letters; 0 is never. depth: whether its approximate counts are shown. ca: certificates to trust.
    """

    region: str | None = None
    endpoint: str | None = None
    key: str | None = None
    secret: str | None = None
    token: str | None = None
    profile: str | None = None
    role: str | None = None
    external: str | None = None
    sts: str | None = None
    account: str | None = None
    visibility: int = 0
    hold: float = LONGEST
    wait: int = 20
    timeout: float = 10.0
    size: int = 1_048_576
    redrive: int = 100
    depth: str = "none"
    ca: str | None = None

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        return f"sqs://{self.region or ''}" + (f" at {self.endpoint}" if self.endpoint else "")

    @property
    def longest_hold(self) -> float:
        """Seconds that a message can be held in all, with a margin."""
        return self.hold - min(_MARGIN, self.hold / 10)

    @property
    def max_body(self) -> int:
        """Bytes of a body that may be any; in Base64 it takes a third more."""
        return (self.size - _RESERVED) * 3 // 4

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(url: str) -> Address:
    """Read `sqs://[key:secret@][region][?endpoint=…]`; raise `InvalidValueError`."""
    parts = urlsplit(url)
    credentials, at, place = parts.netloc.rpartition("@")
    key, _, secret = credentials.partition(":")
    if parts.path not in {"", "/"}:
        raise wrong(
            url, f"expected nothing between the region and '?', not {parts.path!r}; other servers are endpoint="
        )
    if place and not _REGION.fullmatch(place):
        raise wrong(
            url, f"expected a region such as 'eu-west-1' after '//', not {place!r}; other servers are endpoint="
        )
    if at and not (key and secret):
        raise wrong(url, "expected key and secret, as in 'sqs://key:secret@eu-west-1'")
    options = parameters(url, parts.query, _READERS)
    if key and "profile" in options:
        raise wrong(url, "a key and a profile are two ways to name credentials: keep one of them")
    for name in ("external", "sts"):
        if name in options and "role" not in options:
            raise wrong(url, f"{name} needs role")
    if "token" in options and not key:
        raise wrong(url, "token needs a key and a secret")
    if key:
        options |= {"key": unquote(key), "secret": unquote(secret)}
    return Address(region=place or None, **options)


def _whole(low: int, high: int, what: str) -> Reader:
    def read(value: str) -> int:
        if not value.isascii() or not value.isdecimal() or not low <= int(value) <= high:
            raise ValueError(f"expected {what}, from {low} to {high}")
        return int(value)

    return read


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("expected a URL such as http://localhost:9324")
    _ = parts.port  # a ValueError, where it is no number
    return value.rstrip("/")


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], Any]:
    def read(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"expected {what}")
        return value

    return read


_READERS: Mapping[str, Reader] = {
    "endpoint": _http_url,
    "token": text,
    "profile": text,
    "role": _matching(_ROLE, "the ARN of a role"),
    "external": _matching(_EXTERNAL, "from 2 to 1224 letters, digits and any of +=,.@:/-"),
    "sts": _http_url,
    "account": _matching(_DIGITS, "an account of 12 digits"),
    "visibility": _whole(1, LONGEST - 60, "whole seconds"),
    "hold": seconds(LONGEST + 1),
    "wait": _whole(1, 20, "whole seconds"),
    "timeout": seconds(3600),
    "size": _whole(32_768, 1_048_576, "bytes"),
    "redrive": _whole(0, 1000, "how often a message may be received, or 0"),
    "depth": one_of("none", "approximate"),
    "ca": text,
}
