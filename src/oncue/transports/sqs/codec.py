"""Messages as they lie in SQS: the body as text, and one attribute with all else as JSON, because there may be ten at most.

A body that is text stays as it is, so that other programs read it; what SQS cannot hold, such as bytes that are no text, is
written in Base64, and the attribute says so. Attempts are counted there too: a message that is refused, or given back uncounted,
is sent anew, and what the service counts by itself, how often a message was received, is added.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import NO_HEADERS, Message, Send
from oncue.transports.checks import encode_head

ATTRIBUTE = "oncue"
_MOST = 10
"""Attributes that a message may have."""
_ODD = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no text in SQS may hold."""
_BASE64, _EMPTY = "base64", "empty"


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in the attribute.

    body: how the body is written, if not as it is. attempts, lost: the history before it was sent this time.
    at: when it was first sent, by its sender's clock, in microseconds since 1970; it only orders what is looked at.
    delay, rest: milliseconds for which the service delays it, and those that remain after that.
    since: when its age began, in milliseconds since 1970 by the service's clock, if not when it was sent this time.
    """

    id: str
    key: str | None = None
    headers: Mapping[str, str] = {}
    body: str = ""
    attempts: int = 0
    lost: int = 0
    at: int = 0
    delay: int = 0
    rest: int = 0
    since: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Head).decode


class Text(msgspec.Struct, frozen=True, gc=False):
    """A message as it is sent: body, head, and attributes of other programs."""

    body: str
    head: Head
    others: Mapping[str, Any] = {}

    def entry(self) -> dict[str, Any]:
        """For a batch, without its number."""
        attribute = {"DataType": "String", "StringValue": _written(self.head)}
        return {"MessageBody": self.body, "MessageAttributes": {**self.others, ATTRIBUTE: attribute}}

    def with_delay(self, delay: int, rest: int) -> Text:
        """The same, which the service delays by `delay` milliseconds, and which is to wait for `rest` more after that."""
        return msgspec.structs.replace(self, head=msgspec.structs.replace(self.head, delay=delay, rest=rest))


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message as it was received.

    attempts: how often it was handed out, this time included. lost: how often with whoever held it, before.
    sent: by the service's clock, in milliseconds. received: when it was first, if that is now. group: of a FIFO queue.
    repeatable: whether it can be sent anew.
    """

    message: Message
    text: Text
    handle: str
    number: str
    attempts: int
    lost: int
    sent: int
    received: int
    group: str | None
    repeatable: bool

    @property
    def first_sent(self) -> int:
        return self.text.head.at or self.sent * 1000

    @property
    def began(self) -> int:
        """When its age began, in milliseconds since 1970."""
        return self.text.head.since or self.sent + self.text.head.delay

    def rest(self, moment: int | None) -> float:
        """Seconds of a delay that are not over yet, when the service answered at that moment."""
        head = self.text.head
        if not head.rest:
            return 0.0
        return (head.delay + head.rest - max(0, (self.received or moment or 0) - self.sent)) / 1000


def encode(send: Send, size: int, max_body: int) -> Text:
    """Raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored."""
    message = send.message
    encode_head(send, _encode, size)
    raw = bytes(message.body)
    body, how = _body(raw)
    if how == _BASE64 and len(raw) > max_body:
        raise MessageTooLargeError(send.queue, len(raw), max_body)
    head = Head(message.id, message.key, dict(message.headers), how, at=time.time_ns() // 1000)
    return Text(body, head)


def check_size(queue: str, entry: Mapping[str, Any], size: int) -> int:
    """The bytes that the service counts; raise `MessageTooLargeError` if they are over `size`."""
    total = _length(entry["MessageBody"])
    for name, value in entry["MessageAttributes"].items():
        total += len(name) + len(value["DataType"])
        total += _length(value.get("StringValue") or "") + len(value.get("BinaryValue") or b"")
    if total > size:
        raise MessageTooLargeError(queue, total, size)
    return total


def decode(there: Mapping[str, Any], *, fifo: bool = False) -> Received:
    """Any message, those of other programs included. In a FIFO queue what is delayed was handed out before it was due."""
    system = there.get("Attributes") or {}
    attributes = dict(there.get("MessageAttributes") or {})
    body = there.get("Body") or ""
    number = str(there.get("MessageId") or "")
    head, raw = _read(attributes.pop(ATTRIBUTE, None), body, number)
    if head.headers or not attributes:
        headers = head.headers
    else:  # of another program
        headers = {name: value["StringValue"] for name, value in attributes.items() if value.get("StringValue")}
    message = Message(raw, head.id, headers or NO_HEADERS, head.key)
    received = int(system.get("ApproximateReceiveCount", 1))
    held_up = received > 1 and fifo and head.rest > 0
    return Received(
        message=message,
        text=Text(body or " ", head, attributes),
        handle=there["ReceiptHandle"],
        number=number,
        attempts=head.attempts + received - held_up,
        lost=head.lost + received - 1 - held_up,
        sent=int(system.get("SentTimestamp", 0)),
        received=int(system.get("ApproximateFirstReceiveTimestamp", 0)) if received == 1 else 0,
        group=system.get("MessageGroupId") if fifo else None,
        repeatable=len(attributes) < _MOST,
    )


def repeat(received: Received, **changes: Any) -> Text:
    """The same message once more, with another history."""
    head = msgspec.structs.replace(received.text.head, **{"delay": 0, "rest": 0, "since": 0, **changes})
    return msgspec.structs.replace(received.text, head=head)


def _read(attribute: Mapping[str, Any] | None, body: str, number: str) -> tuple[Head, bytes]:
    if attribute is not None:
        try:
            head = _decode(attribute.get("StringValue") or "")
            if head.body == _EMPTY:
                return head, b""
            if head.body == _BASE64:
                return head, base64.b64decode(body, validate=True)
            return head, body.encode()
        except (msgspec.MsgspecError, binascii.Error):
            pass
    return Head(number), body.encode()


def _body(raw: bytes) -> tuple[str, str]:
    if not raw:
        return "-", _EMPTY
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode(), _BASE64
    if _ODD.search(text):
        return base64.b64encode(raw).decode(), _BASE64
    return text, ""


def _written(head: Head) -> str:
    try:
        written = _encode(head).decode()
    except UnicodeEncodeError as error:
        raise InvalidValueError(f"message {head.id!r}: id, key and headers have to be valid Unicode: {error}") from None
    return written if written.isascii() else _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
