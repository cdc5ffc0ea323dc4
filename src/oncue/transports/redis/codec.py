"""Messages as they lie in the server: the length of the head, the head (id, key, headers) as msgpack, and the body."""

from __future__ import annotations

import msgspec

from oncue.core.message import NO_HEADERS, Message, Send
from oncue.transports.checks import encode_head

MAX_BODY = 16 * 1024 * 1024
"""Bytes. A server closes a connection that listens when more than 32 MiB wait to be written to it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, str | None, dict[str, str]]).decode


def encode(send: Send) -> bytes:
    """The message as it is stored; raise `InvalidValueError` or `MessageTooLargeError` for what cannot be."""
    head = encode_head(send, _encode, MAX_BODY)
    return b"%b%b%b" % (len(head).to_bytes(4, "big"), head, bytes(send.message.body))


def decode(payload: bytes) -> Message:
    """The message that `encode` wrote."""
    end = 4 + int.from_bytes(payload[:4], "big")
    id, key, headers = _decode(payload[4:end])
    return Message(payload[end:], id, headers or NO_HEADERS, key)
