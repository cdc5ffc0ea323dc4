"""Messages as they lie in the server: the body as it is, id and time as properties, key and headers among the headers.

Attempts are counted in headers of our own, because a message that is given back uncounted, or refused, is published anew; what
the server counts by itself, how often a message was taken from a consumer that went away, is added to them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.message import NO_HEADERS, Message, Send
from oncue.transports.checks import encode_head
from oncue.transports.rabbitmq.amqp import Delivery, MalformedError, Properties, decode_properties, encode_properties

MAX_BODY = 16 * 1024 * 1024
"""Bytes. Servers from 4.0 on take no more unless told to."""
_MAX_PROPERTIES = 120_000
"""Bytes. All properties have to fit into one frame."""
_MAX_ID = 255

_KEY, _ID = "x-oncue-key", "x-oncue-id"
_ATTEMPTS, _LOST = "x-oncue-attempts", "x-oncue-lost"
_ESCAPE = "x-oncue-header-"
_COUNT = "x-delivery-count"
_SERVERS = ("x-death", "x-first-death-", "x-last-death-", _COUNT, "x-acquired-count", "x-oncue-")
"""Headers that begin so are the server's, or ours: they are nobody's message."""
_ROUTING = frozenset({"cc", "bcc"})


class Parcel(NamedTuple):
    """One message on its way to the server."""

    exchange: str
    key: str
    properties: bytes
    body: bytes


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message with its history: how often it was handed out, and `lost` with whoever held it, up to now.

    sent: when, in seconds since 1970. returned: how much of that only the server has counted.
    """

    message: Message
    attempts: int
    lost: int
    sent: int | None
    returned: int


def encode(send: Send) -> tuple[bytes, bytes]:
    """Properties and body; raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored."""
    properties: bytes = encode_head(send, _encode_head, MAX_BODY)
    return properties, bytes(send.message.body)


def _encode_head(head: tuple[str, str | None, Mapping[str, str]]) -> bytes:
    id, key, given = head
    headers: dict[str, Any] = {}
    for name, value in given.items():
        headers[_name_there(name)] = value
    if key is not None:
        headers[_KEY] = key
    short = len(id) * 4 <= _MAX_ID or len(id.encode()) <= _MAX_ID
    if not short:
        headers[_ID] = id
    return _written(
        message_id=id if short else None,
        headers=headers or None,
        delivery_mode=2,
        timestamp=math.ceil(time.time()),
    )


def _written(**properties: Any) -> bytes:
    try:
        written = encode_properties(**properties)
    except MalformedError as error:
        if isinstance(error.__cause__, UnicodeEncodeError):
            raise error.__cause__ from None
        raise InvalidValueError(f"a message for RabbitMQ: {error}") from None
    if len(written) > _MAX_PROPERTIES:
        raise InvalidValueError(
            f"a message for RabbitMQ: headers of {len(written)} bytes are over the limit of {_MAX_PROPERTIES} bytes"
        )
    return written


def decode(delivery: Delivery) -> Received:
    """Any message, those of other programs included."""
    try:
        properties = decode_properties(delivery.properties)
    except MalformedError:
        properties = Properties()
    there = properties.headers
    if not there:
        return Received(Message(delivery.body, _id(properties, delivery.body)), 0, 0, properties.timestamp, 0)
    key = there.get(_KEY)
    id = str(there[_ID]) if _ID in there else _id(properties, delivery.body)
    headers = {}
    for name, value in there.items():
        ours = _name_here(name)
        if ours is not None and value is not None:
            headers[ours] = value if type(value) is str else _as_text(value)
    message = Message(delivery.body, id, headers or NO_HEADERS, None if key is None else str(key))
    returned = _number(there.get(_COUNT))
    attempts, lost = _number(there.get(_ATTEMPTS)) + returned, _number(there.get(_LOST)) + returned
    return Received(message, attempts, lost, properties.timestamp, returned)


def repeat(delivery: Delivery, received: Received, *, retention: float | None, due: float | None = None) -> bytes:
    """The properties of a message that is published once more, with the history that `received` has.

    retention: seconds that its queue keeps messages; of them it has what is left. due: when it is to come, if that is later.
    """
    try:
        old = decode_properties(delivery.properties)
    except MalformedError:
        old = Properties()
    headers = {
        name: value
        for name, value in (old.headers or {}).items()
        if not name.startswith(_SERVERS) or name.startswith((_KEY, _ID, _ESCAPE))
    }
    headers |= {_ATTEMPTS: received.attempts, _LOST: received.lost}
    sent = received.sent if due is None else math.ceil(time.time() + due)
    expiration = None
    if retention is not None and due is None and sent is not None:
        expiration = str(max(1, round((retention - max(0.0, time.time() - sent)) * 1000)))
    id = old.message_id
    if id is None and _ID not in headers:
        id = received.message.id
    new = msgspec.structs.replace(
        old, headers=headers, delivery_mode=2, message_id=id, timestamp=sent, expiration=expiration, user_id=None
    )
    fields = msgspec.structs.asdict(new)
    try:
        return encode_properties(**fields)
    except MalformedError:  # values that other programs can write and this client cannot
        fields["headers"] = {name: value for name, value in headers.items() if isinstance(value, str | int | float)}
        return encode_properties(**fields)


@lru_cache(1000)
def _name_there(name: str) -> str:
    """Some headers mean something to the server."""
    return _ESCAPE + name if name.lower().startswith("x-") or name.lower() in _ROUTING else name


@lru_cache(1000)
def _name_here(name: str) -> str | None:
    if name.startswith(_ESCAPE):
        return name.removeprefix(_ESCAPE)
    return None if name.startswith(_SERVERS) else name


def _as_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)


def _number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _id(properties: Properties, body: bytes) -> str:
    """Programs that give none get one that is the same each time that the message is delivered."""
    if properties.message_id is not None:
        return properties.message_id
    known = f"{properties.timestamp} {properties.correlation_id} ".encode()
    return hashlib.blake2b(known + body, digest_size=16).hexdigest()
