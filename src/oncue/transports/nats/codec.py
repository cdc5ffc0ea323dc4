"""Messages as they lie in a stream: the body as it is, and headers.

`Oncue` holds id, key and headers as JSON. `Nats-Msg-Id` makes the server know a message that is sent once more; it is no message
id but names one sending, so that the same message can be sent to a queue as often as one likes. What is published anew because
it was given back, refused or lost has its history in headers too, and the name of its first sending, from which those of all
that is sent with its acknowledgement are made: a handler that runs twice sends once.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.message import NO_HEADERS, Message, Send
from oncue.transports.checks import encode_head

MAX_HEAD = 64 * 1024
"""Bytes. So much of what a server takes is kept for headers."""
LARGEST = 16 * 1024 * 1024
"""Bytes. Larger bodies are refused, whatever the server takes."""

_START, _END = b"NATS/1.0", b"\r\n\r\n"
_HEAD, _LINE, _ATTEMPTS, _LOST, _DUE = b"Oncue", b"Oncue-Line", b"Oncue-Attempts", b"Oncue-Lost", b"Oncue-Due"
_ID = b"Nats-Msg-Id"
_SERVERS = re.compile(r"nats-|oncue", re.IGNORECASE)
_NATS = re.compile(rb"nats-", re.IGNORECASE)
_STATUS = re.compile(rb"NATS/1\.0\s+(\d{3})\s*([^\r\n]*)")
_LONGEST_LINE_NAME = 256
_PLAIN_WORDS = 9
"""Of the subject of an acknowledgement, such as $JS.ACK.stream.consumer.1.2.3.4.5."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, str | None, dict[str, str]]).decode


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message with its history: how often it was handed out, and `lost` with whoever held it, up to now.

    line: the name of its first sending.
    """

    message: Message
    attempts: int
    lost: int
    line: bytes


def encode(send: Send, most: int) -> bytes:
    """The head of a message; raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored."""
    head = encode_head(send, _encode, most)
    if len(head) > MAX_HEAD - 1024:
        raise InvalidValueError(
            f"message {send.message.id!r}: id, key and headers of {len(head)} bytes are over the limit of {MAX_HEAD - 1024} bytes"
        )
    return _hidden(head)


def headers(head: bytes, name: bytes, *more: bytes) -> bytes:
    """The headers of a message that is sent under that name."""
    return b"%b\r\nNats-Msg-Id: %b\r\nOncue: %b%b%b" % (_START, name, head, b"".join(more), _END)


def name_anew(sequence: int) -> bytes:
    """The name under which a message is published anew that has this number: once, whoever does it."""
    return b"oncue-%d" % sequence


def history(received: Received) -> bytes:
    """What the headers of a message tell that is published once more."""
    return b"\r\nOncue-Line: %b\r\nOncue-Attempts: %d\r\nOncue-Lost: %d" % (
        received.line,
        received.attempts,
        received.lost,
    )


def line(name: bytes) -> bytes:
    """For headers that the server takes their name from: what the name was."""
    return b"\r\nOncue-Line: %b" % name


def schedule(seconds: float, skew: float, target: bytes) -> bytes:
    """Have the server publish it to `target`, in so many seconds. `skew`: how far the server's clock is ahead of ours."""
    due = datetime.now(UTC) + timedelta(seconds=math.ceil((seconds + skew) * 1000) / 1000)
    return b"\r\nNats-Schedule: @at %b\r\nNats-Schedule-Target: %b" % (
        due.isoformat(timespec="microseconds").replace("+00:00", "Z").encode(),
        target,
    )


def due(at: float) -> bytes:
    """Have one of us move it at that time, in seconds since 1970."""
    return b"\r\nOncue-Due: %.3f" % at


def head_of(message: Message) -> bytes:
    """The head of a message that was received, of another program perhaps."""
    return _hidden(_encode((message.id, message.key, dict(message.headers))))


def decode(header: bytes, body: bytes, sequence: int) -> Received:
    """Any message, those of other programs included."""
    values = _values(header)
    head = values.get(_HEAD)
    name = values.get(_LINE) or values.get(_ID)
    if name is None or len(name) > _LONGEST_LINE_NAME:
        name = b"n%d" % sequence
    message = _message(head, body) if head is not None else None
    if message is None:
        message = Message(body, _id(values, sequence), _foreign(values) or NO_HEADERS)
    return Received(message, _number(values.get(_ATTEMPTS)), _number(values.get(_LOST)), name)


def due_of(header: bytes) -> float:
    """When a message is to be moved, in seconds since 1970; 0.0 if nobody says."""
    try:
        return float(_values(header).get(_DUE, b"0"))
    except ValueError:
        return 0.0


def without_due(header: bytes, name: bytes) -> bytes:
    """The headers of a message that was delayed, for its queue."""
    values = _values(header)
    values.setdefault(_LINE, values.get(_ID, name))
    kept = [b"%b: %b" % (key, value) for key, value in values.items() if key not in {_ID, _DUE}]
    return b"\r\n".join([_START, b"%b: %b" % (_ID, name), *kept]) + _END


def status(header: bytes) -> tuple[int, str]:
    """Code and text of an answer that is no message; 0 for one that is."""
    if header.startswith(b"NATS/1.0\r"):
        return 0, ""
    found = _STATUS.match(header)
    return (int(found[1]), found[2].decode(errors="replace").strip()) if found is not None else (0, "")


def left_of(header: bytes) -> int | None:
    """How many messages a request that ended had still asked for."""
    value = _values(header).get(b"Nats-Pending-Messages")
    return None if value is None else _number(value)


def names_of(parent: bytes, sends: Iterable[Send]) -> list[bytes]:
    """Names for what is sent with the acknowledgement of a message: the same ones if that is tried again."""
    seen: dict[tuple[str, str], int] = {}
    names = []
    for send in sends:
        place = (send.queue, send.message.id)
        seen[place] = count = seen.get(place, 0) + 1
        text = f"{send.queue}\0{send.message.id}\0{count}".encode()
        names.append(hashlib.blake2b(parent + b"\0" + text, digest_size=16).hexdigest().encode())
    return names


def delivery_of(reply: bytes) -> tuple[int, int]:
    """How often a message was delivered, and its number in the stream; from the subject that it is acknowledged by."""
    words = reply.split(b".")
    at = 4 if len(words) == _PLAIN_WORDS else 6  # with a domain and an account before
    return int(words[at]), int(words[at + 1])


def stored_at(reply: bytes) -> float:
    """When a message came to be in its stream, in seconds since 1970, by the server's clock; from the same subject."""
    words = reply.split(b".")
    return int(words[7 if len(words) == _PLAIN_WORDS else 9]) / 1e9


def consumer_of(reply: bytes) -> str:
    """Whose delivery it is; from the subject that it is acknowledged by."""
    words = reply.split(b".")
    return words[3 if len(words) == _PLAIN_WORDS else 5].decode()


def _message(head: bytes, body: bytes) -> Message | None:
    try:
        id, key, given = _decode(head)
    except msgspec.MsgspecError:
        return None
    return Message(body, id, given or NO_HEADERS, key)


def _values(header: bytes) -> dict[bytes, bytes]:
    """Headers by name; the first one of each."""
    values: dict[bytes, bytes] = {}
    for entry in header.split(b"\r\n")[1:]:
        name, _, value = entry.partition(b":")
        if name and name not in values:
            values[name] = value.strip()
    return values


def _foreign(values: Mapping[bytes, bytes]) -> dict[str, str]:
    found = ((name.decode(errors="replace"), value.decode(errors="replace")) for name, value in values.items())
    return {name: value for name, value in found if not _SERVERS.match(name)}


def _id(values: Mapping[bytes, bytes], sequence: int) -> str:
    """Programs that give none get one that is the same each time that the message is delivered."""
    given = values.get(_ID)
    return given.decode(errors="replace") if given else f"nats-{sequence}"


def _number(value: bytes | None) -> int:
    return int(value) if value is not None and value.isdigit() else 0


def _hidden(head: bytes) -> bytes:
    """Older servers look for their headers anywhere in ours, also inside of the JSON: there it is written in another way."""
    return _NATS.sub(lambda found: b"\\u%04x%b" % (found[0][0], found[0][1:]), head)
