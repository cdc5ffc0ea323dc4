"""Messages as they lie in Pub/Sub: the body as it is, and all else as JSON in the attribute `oncue`.

A value may have 1024 bytes, so longer ones go on in `oncue.1`, `oncue.2` and so on. Attempts are counted there too: a message that
is refused, or given back uncounted, is sent anew, and what the service counts by itself, how often it was delivered, is added.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import NO_HEADERS, Message, Send
from oncue.transports.checks import encode_head
from oncue.transports.pubsub.wire import PubsubMessage

ATTRIBUTE = "oncue"
_VALUE = 1024
_MOST = 100
"""Attributes that a message may have."""
_OTHERS = ("googclient_", "CloudPubSubDeadLetter")
"""Attributes that begin so are no headers."""


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in the attribute.

    attempts, lost: the history before it was sent this time. at: when it was first sent, by its sender's clock, in microseconds
    since 1970; it only orders what is looked at. delay: milliseconds that it waits for from when it was sent this time.
    since: when its age began, in milliseconds since 1970 by the service's clock, if not when it was sent this time.
    """

    id: str
    key: str | None = None
    headers: Mapping[str, str] = {}
    attempts: int = 0
    lost: int = 0
    at: int = 0
    delay: int = 0
    since: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Head).decode


class Text(msgspec.Struct, frozen=True, gc=False):
    """A message as it is sent: body, head, and attributes of other programs."""

    body: bytes
    head: Head
    others: Mapping[str, str] = {}

    def changed(self, **changes: Any) -> Text:
        """The same message with another history."""
        return msgspec.structs.replace(self, head=msgspec.structs.replace(self.head, **changes))


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message as it was received.

    attempts: how often it was handed out, this time included. lost: how often with whoever held it, before.
    sent: by the service's clock, in milliseconds. group: its ordering key, or nothing, in a FIFO queue.
    """

    message: Message
    text: Text
    handle: str
    attempts: int
    lost: int
    sent: int
    group: str | None

    @property
    def first_sent(self) -> int:
        return self.text.head.at or self.sent * 1000

    @property
    def began(self) -> int:
        """When its age began, in milliseconds since 1970."""
        return self.text.head.since or self.sent + self.text.head.delay

    @property
    def due(self) -> int:
        """When its delay is over, in milliseconds since 1970."""
        return self.sent + self.text.head.delay


def encode(send: Send, max_body: int) -> Text:
    """Raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored."""
    message = send.message
    encode_head(send, _encode, max_body)
    head = Head(message.id, message.key, dict(message.headers), at=time.time_ns() // 1000)
    return Text(bytes(message.body), head)


def written(text: Text, order: str = "") -> Any:
    """As it is published; raise `InvalidValueError` or `MessageTooLargeError` for a head that is too long."""
    try:
        head = _encode(text.head)
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"message {text.head.id!r}: id, key and headers have to be valid Unicode: {error}"
        ) from None
    found = PubsubMessage(data=text.body, attributes=text.others, ordering_key=order)
    if len(head) <= _VALUE:
        found.attributes[ATTRIBUTE] = head.decode()
        return found
    pieces = list(_pieces(head))
    if len(pieces) > _MOST - len(text.others):
        raise MessageTooLargeError("?", len(text.body) + len(head), (_MOST - len(text.others)) * _VALUE)
    for number, piece in enumerate(pieces):
        found.attributes[f"{ATTRIBUTE}.{number}" if number else ATTRIBUTE] = piece
    return found


def _pieces(head: bytes) -> Iterator[str]:
    """Texts that are as long as a value may be, none of which ends within a letter."""
    start = 0
    while start < len(head):
        end = min(len(head), start + _VALUE)
        while end < len(head) and head[end] & 0xC0 == 0x80:
            end -= 1
        yield head[start:end].decode()
        start = end


def decode(there: Any, *, fifo: bool = False) -> Received:
    """Any message, those of other programs included. In a FIFO queue what is delayed was delivered before it was due."""
    message = there.message
    attributes = dict(message.attributes)
    head = _read(attributes)
    if head is None:
        others = {name: value for name, value in attributes.items() if not name.startswith(_OTHERS)}
        head = Head(message.message_id, message.ordering_key or None)
        headers: Mapping[str, str] = others
    else:
        others, headers = attributes, head.headers
    time = message.publish_time
    delivered = there.delivery_attempt or 1
    held_up = delivered > 1 and fifo and head.delay > 0
    return Received(
        message=Message(message.data, head.id, headers or NO_HEADERS, head.key),
        text=Text(message.data, head, others),
        handle=there.ack_id,
        attempts=head.attempts + delivered - held_up,
        lost=head.lost + delivered - 1 - held_up,
        sent=time.seconds * 1000 + time.nanos // 1_000_000,
        group=message.ordering_key if fifo else None,
    )


def _read(attributes: dict[str, str]) -> Head | None:
    """Its head, which is taken out."""
    text = attributes.get(ATTRIBUTE)
    if text is None:
        return None
    names, number = [ATTRIBUTE], 1
    while (name := f"{ATTRIBUTE}.{number}") in attributes:
        text += attributes[name]
        names.append(name)
        number += 1
    try:
        head = _decode(text)
    except msgspec.MsgspecError:
        return None
    for name in names:
        del attributes[name]
    return head
