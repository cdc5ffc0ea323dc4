"""Messages as they lie in the server: the length of the head, the head (id, key, headers) as msgpack, and the body."""

from __future__ import annotations

from typing import Any

import msgspec

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import NO_HEADERS, Message, Send

MAX_BODY = 16 * 1024 * 1024
"""Bytes. A server closes a connection that listens when more than 32 MiB wait to be written to it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, str | None, dict[str, str]]).decode
_NONE: dict[str, str] = {}


def encode(send: Send) -> bytes:
    """The message as it is stored; raise `InvalidValueError` or `MessageTooLargeError` for what cannot be."""
    message: Message = send.message
    body: Any = message.body
    if not isinstance(body, bytes | bytearray):
        raise InvalidValueError(f"message {message.id!r}: the body has to be bytes, not {type(body).__name__}")
    if len(body) > MAX_BODY:
        raise MessageTooLargeError(send.queue, len(body), MAX_BODY)
    key, headers = message.key, _NONE
    words: list[Any] = [message.id] if key is None else [message.id, key]
    if message.headers:
        headers = dict(message.headers)
        words += [*headers, *headers.values()]
    if not all([isinstance(word, str) for word in words]):  # noqa: C419  # a list is faster than a generator
        raise InvalidValueError(f"message {message.id!r}: id, key and headers have to be text")
    try:
        head = _encode((message.id, key, headers))
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"message {message.id!r}: id, key and headers have to be valid Unicode: {error}"
        ) from None
    return b"%b%b%b" % (len(head).to_bytes(4, "big"), head, bytes(body))


def decode(payload: bytes) -> Message:
    """The message that `encode` wrote."""
    end = 4 + int.from_bytes(payload[:4], "big")
    id, key, headers = _decode(payload[4:end])
    return Message(payload[end:], id, headers or NO_HEADERS, key)
