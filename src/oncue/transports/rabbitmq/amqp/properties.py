"""The properties of a message: flags that say which ones there are, and their values."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from pamqp import decode as pamqp_decode
from pamqp import encode as pamqp_encode

from oncue.transports.rabbitmq.amqp.faults import MalformedError


class Properties(msgspec.Struct, frozen=True, gc=False):
    """None where a message has no such property. `timestamp` is in seconds since 1970."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


_SHORT, _LONG = struct.Struct(">H"), struct.Struct(">I")
_TEXT, _INTEGER, _DOUBLE = struct.Struct(">cI"), struct.Struct(">cq"), struct.Struct(">cd")
_SIZED: Final = {ord(kind): struct.Struct(f">{code}") for kind, code in zip("tbBsuIilLfd", "?bBhHiIqqfd", strict=True)}
"""Values of a table that have a fixed size, by the letter that goes before them."""


def encode_properties(**properties: Any) -> bytes:
    """The fields of `Properties` by name, as they go into a content header; None leaves one out.

    Raises `MalformedError` for what cannot be written, such as a text of over 255 bytes.
    """
    flags, data = 0, b""
    try:
        for (flag, _, write, _), value in zip(_FIELDS, msgspec.structs.astuple(Properties(**properties)), strict=True):
            if value is not None:
                flags |= flag
                data += write(value)
    except Exception as error:
        raise MalformedError(f"a message's properties cannot be written: {error!r}") from error
    return _SHORT.pack(flags) + data


def decode_properties(payload: bytes) -> Properties:
    """What `encode_properties` wrote, or another client. Raises `MalformedError` for what makes no sense."""
    try:
        flags, position, fields = _SHORT.unpack_from(payload)[0], 2, {}
        for flag, name, _, read in _FIELDS:
            if flags & flag:
                fields[name], position = read(payload, position)
        if position != len(payload) or flags & 0b11:
            raise MalformedError("they are of another length than they say, or have unknown flags")
        return Properties(**fields)
    except Exception as error:
        raise MalformedError(f"a message's properties cannot be read: {error!r}") from error


def short_text(value: str) -> bytes:
    """A text of up to 255 bytes, as the protocol writes names; raises `MalformedError` for a longer one."""
    text = value.encode()
    if len(text) > 255:
        raise MalformedError(f"a text of {len(text)} bytes is over the limit of 255: {value[:40]!r}…")
    return bytes((len(text),)) + text


_key = lru_cache(1000)(short_text)  # there are few names of headers


def _read_text(data: bytes, position: int) -> tuple[str, int]:
    end = position + 1 + data[position]
    return data[position + 1 : end].decode(), end


def _write_octet(value: int) -> bytes:
    return bytes((value,))


def _read_octet(data: bytes, position: int) -> tuple[int, int]:
    return data[position], position + 1


def _write_seconds(value: int) -> bytes:
    return value.to_bytes(8)


def _read_seconds(data: bytes, position: int) -> tuple[int, int]:
    return int.from_bytes(data[position : position + 8]), position + 8


def _write_table(value: Mapping[str, Any]) -> bytes:
    table = b""
    for key, item in value.items():
        table += _key(key)
        kind = type(item)
        if kind is str:
            text = item.encode()
            table += _TEXT.pack(b"S", len(text)) + text
        elif kind is int:
            table += _INTEGER.pack(b"l", item)
        elif kind is float:  # of which pamqp would keep half the digits
            table += _DOUBLE.pack(b"d", item)
        else:
            table += pamqp_encode.encode_table_value(item)
    return _LONG.pack(len(table)) + table


def _read_table(data: bytes, position: int) -> tuple[dict[str, Any], int]:
    end = position + 4 + _LONG.unpack_from(data, position)[0]
    position += 4
    table: dict[str, Any] = {}
    while position < end:
        key, position = _read_text(data, position)
        kind = data[position]
        sized = _SIZED.get(kind)
        if kind == 0x53:  # S
            start = position + 5
            position = start + _LONG.unpack_from(data, position + 1)[0]
            text = data[start:position]
            try:
                table[key] = text.decode()
            except UnicodeDecodeError:  # it may be any bytes
                table[key] = text
        elif sized is not None:
            table[key] = sized.unpack_from(data, position + 1)[0]
            position += 1 + sized.size
        else:
            used, table[key] = pamqp_decode.embedded_value(data[position:end])
            position += used
    if position != end:
        raise MalformedError("a table is of another length than it says")
    return table, end


_Codec = tuple[Callable[[Any], bytes], Callable[[bytes, int], tuple[Any, int]]]
_KINDS: Final[dict[str, _Codec]] = {
    "headers": (_write_table, _read_table),
    "delivery_mode": (_write_octet, _read_octet),
    "priority": (_write_octet, _read_octet),
    "timestamp": (_write_seconds, _read_seconds),
}
_FLAGS: Final = {name: 0x8000 >> place for place, name in enumerate(Properties.__struct_fields__)}
_FIELDS: Final = [(flag, name, *_KINDS.get(name, (short_text, _read_text))) for name, flag in _FLAGS.items()]
"""Flag, name, writer and reader, in the order in which they are written."""
