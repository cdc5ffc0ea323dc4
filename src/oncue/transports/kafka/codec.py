"""How messages are written as records. Pure.

The first header is ours, the others are the message's own, and the record's key is the message's. Records of other programs have
no such header, and are read as messages all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.message import NO_HEADERS, Message, Send
from oncue.transports.checks import encode_head

MAX_BODY = 2**20
MAX_RECORD = 2 * 2**20
"""Bytes with headers and all, as topics that are made allow."""
_OURS = "oncue"

Headers = Sequence[tuple[str, bytes]]


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a record says of a message beside its text.

    order: which of one sender's messages came first, where their times are the same.
    attempts, lost: how often it was handed out before, and lost with its consumer.
    queue, incarnation, due: for one that is delayed, where it belongs, and when (s since 1970).
    """

    id: str
    order: int = 0
    attempts: int = 0
    lost: int = 0
    queue: str = ""
    incarnation: str = ""
    due: float = 0.0


class Parcel(NamedTuple):
    """A record to be sent; one without a body deletes what its topic has of that key."""

    key: bytes | None
    headers: Headers
    body: bytes | None


class Received(NamedTuple):
    """A record as it was read."""

    message: Message
    state: State


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(State).decode
_order = itertools.count(1)


def check(send: Send) -> None:
    """Raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored."""
    encode_head(send, _check_text, MAX_BODY)


def encode(message: Message, **state: Any) -> Parcel:
    """A record of a message that was checked."""
    head = _encode(State(message.id, next(_order), **state))
    headers = [(_OURS, head)]
    if message.headers:
        headers += [(name, value.encode()) for name, value in message.headers.items()]
    key = None if message.key is None else message.key.encode()
    return Parcel(key, headers, bytes(message.body))


def decode(record: Any) -> Received:
    """A record as a message; of others' records the id is made of their place, so that it is the same each time."""
    headers: Headers = record.headers
    state = None
    if headers and headers[0][0] == _OURS:
        try:
            state = _decode(headers[0][1])
            headers = headers[1:]
        except msgspec.MsgspecError:
            state = None
    if state is None:
        state = State(f"{record.topic}-{record.partition}-{record.offset}")
    found = {name: _text(value) for name, value in headers} if headers else NO_HEADERS
    key = None if record.key is None else _text(record.key)
    return Received(Message(record.value or b"", state.id, found, key), state)


def _check_text(head: tuple[str, str | None, dict[str, str]]) -> bytes:
    id, key, headers = head
    if len(id) + len(key or "") + sum(len(n) + len(v) for n, v in headers.items()) > MAX_RECORD // 8:
        raise InvalidValueError(f"message {id[:100]!r}: id, key and headers are over {MAX_RECORD // 8} characters")
    return b"".join([id.encode(), (key or "").encode(), *(w.encode() for pair in headers.items() for w in pair)])


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
