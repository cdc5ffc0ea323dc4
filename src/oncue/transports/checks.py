"""What every transport has to make sure of before it asks its store. Pure; for transports, those of other packages too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from oncue.core.errors import InvalidValueError, MessageTooLargeError, QueueMismatchError
from oncue.core.message import Send, check_delay, check_queue_name
from oncue.transports.base import QueueSpec

_NONE: dict[str, str] = {}


def check_spec(spec: QueueSpec) -> None:
    """Raise `InvalidValueError` for a name that no queue can have, or a lease or retention that is no time."""
    check_queue_name(spec.name)
    _check_seconds("lease", spec.lease)
    if spec.retention is not None:
        _check_seconds("retention", spec.retention)


def check_equal(have: QueueSpec, asked: QueueSpec) -> None:
    """Raise `QueueMismatchError`, with both values of each, if the queue that is there has other settings."""
    old, new = msgspec.structs.asdict(have), msgspec.structs.asdict(asked)
    found = {name: (old[name], new[name]) for name in new if old[name] != new[name]}
    if found:
        raise QueueMismatchError(asked.name, found)


def check_prefetch(prefetch: int) -> int:
    """Return `prefetch` unchanged; raise `InvalidValueError` if it is below 1."""
    if prefetch < 1:
        raise InvalidValueError(f"prefetch {prefetch!r}: expected 1 or more")
    return prefetch


def encode_head(send: Send, encode: Callable[[Any], bytes], max_body: int) -> bytes:
    """Id, key and headers of a message, as `encode` writes them, once the message is known to be one that can be stored.

    Raise `InvalidValueError` for what is no text or no bytes, and `MessageTooLargeError` for a body over `max_body`.
    """
    message = send.message
    body: Any = message.body
    if not isinstance(body, bytes | bytearray):
        raise InvalidValueError(f"message {message.id!r}: the body has to be bytes, not {type(body).__name__}")
    if len(body) > max_body:
        raise MessageTooLargeError(send.queue, len(body), max_body)
    key, headers = message.key, _NONE
    words: list[Any] = [message.id] if key is None else [message.id, key]
    if message.headers:
        headers = dict(message.headers)
        words += headers
        words += headers.values()
    for word in words:
        if not isinstance(word, str):
            raise InvalidValueError(f"message {message.id!r}: id, key and headers have to be text")
    try:
        return encode((message.id, key, headers))
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"message {message.id!r}: id, key and headers have to be valid Unicode: {error}"
        ) from None


def _check_seconds(name: str, seconds: float) -> None:
    if not check_delay(seconds) > 0:
        raise InvalidValueError(f"{name} {seconds!r}: expected more than 0 seconds")
