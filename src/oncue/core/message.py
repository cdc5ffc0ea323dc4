"""What a queue holds (`Message`), and what is asked of a transport (`Send`).

Both are values: frozen, and their mappings are not changed after construction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import urandom
from types import MappingProxyType

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.times import finite, shown

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

_VERSION_4 = 4 << 76 | 0b10 << 62
_RANDOM = ~(0xF << 76 | 0b11 << 62)

LONGEST_DELAY = 10 * 365 * 86400.0
"""Seconds; longer delays are refused."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as a queue holds it: bytes, headers (text to text), an id and perhaps an ordering key."""

    body: bytes
    id: str
    headers: Mapping[str, str] = NO_HEADERS
    key: str | None = None


class Send(msgspec.Struct, frozen=True, gc=False):
    """A message on its way to a queue, to be handed out no sooner than `delay` seconds after it is stored."""

    queue: str
    message: Message
    delay: float = 0.0


def new_id() -> str:
    """A new random id (UUID version 4)."""
    # As `str(uuid.uuid4())`, in a third of the time: 122 random bits, and those of version and variant.
    text = f"{int.from_bytes(urandom(16)) & _RANDOM | _VERSION_4:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def check_queue_name(name: str) -> str:
    """Return `name` unchanged; raise `InvalidValueError` if no transport could hold it under exactly this name.

    Allowed are 1 to 128 ASCII letters, digits, dots, hyphens and underscores, the first a letter or digit.
    The set is small so that no transport has to translate names and two of them can never meet in one queue.
    """
    if not _QUEUE_NAME.fullmatch(name):
        raise InvalidValueError(
            f"queue name {name!r}: expected 1 to 128 letters, digits, '.', '-' or '_', the first a letter or digit"
        )
    return name


def check_delay(delay: object) -> float:
    """Return `delay` as seconds; raise `InvalidValueError` if no number, negative, not finite or over ten years."""
    seconds = finite(delay)
    if seconds is None:
        raise InvalidValueError(f"delay {shown(delay)}: expected a number of seconds")
    if seconds < 0:
        raise InvalidValueError(f"delay {shown(delay)}: expected 0 or more seconds")
    if seconds > LONGEST_DELAY:
        raise InvalidValueError(f"delay {shown(delay)}: expected at most ten years ({LONGEST_DELAY:.0f} seconds)")
    return seconds
