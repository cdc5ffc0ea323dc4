"""A message's properties, written by us and read by pamqp, the other way round, and broken."""

from __future__ import annotations

import datetime as dt
import math
import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from transports.rabbitmq.amqp_support import patient

from oncue.transports.rabbitmq.amqp import MalformedError, Properties, decode_properties, encode_properties

NAMES = Properties.__struct_fields__
OCTETS = st.integers(0, 255)
# pamqp writes names of up to 128 bytes, in UTF-8 as everything.
KEYS = st.text(st.characters(codec="utf-8"), max_size=32)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
SECONDS = st.integers(0, 2**32 - 1)
MOMENTS = SECONDS.map(lambda seconds: dt.datetime.fromtimestamp(seconds, dt.UTC))
EXOTIC = (
    st.none()
    | st.booleans()
    | MOMENTS
    | st.binary(max_size=40).map(bytearray)
    | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1_000_000, max_value=1_000_000)
    | st.just(Decimal("1E+3"))
)
NESTED = st.recursive(
    EXOTIC | TEXTS | INTEGERS | st.floats(width=32, allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
HEADERS = st.dictionaries(KEYS, TEXTS | INTEGERS | NESTED, max_size=6)


def fields(texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    kinds = {"headers": HEADERS, "delivery_mode": st.sampled_from([1, 2]), "priority": OCTETS, "timestamp": SECONDS}
    return st.fixed_dictionaries({}, optional={name: kinds.get(name, texts) for name in NAMES if name != "cluster_id"})


def read_by_pamqp(payload: bytes) -> dict[str, Any]:
    theirs = commands.Basic.Properties()
    theirs.unmarshal(struct.unpack_from(">H", payload)[0], payload[2:])
    found = {"type" if name == "message_type" else name: value for name, value in theirs}
    if found["timestamp"] is not None:
        found["timestamp"] = int(found["timestamp"].timestamp())
    return {name: value for name, value in found.items() if value is not None and (name, value) != ("cluster_id", "")}


def written_by_pamqp(fields: dict[str, Any]) -> bytes:
    fields = {"message_type" if name == "type" else name: value for name, value in fields.items()}
    if "timestamp" in fields:
        fields["timestamp"] = dt.datetime.fromtimestamp(fields["timestamp"], dt.UTC)
    return commands.Basic.Properties(**fields).marshal()


def ours(payload: bytes) -> dict[str, Any]:
    properties = decode_properties(payload)
    return {name: getattr(properties, name) for name in NAMES if getattr(properties, name) is not None}


SHORT_TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@patient
@given(fields(SHORT_TEXTS))
def test_what_we_write_pamqp_reads(fields: dict[str, Any]) -> None:
    payload = encode_properties(**fields)
    assert read_by_pamqp(payload) == fields
    assert ours(payload) == fields


@patient
@given(fields(SHORT_TEXTS.filter(bool)))
def test_what_pamqp_writes_we_read(fields: dict[str, Any]) -> None:
    payload = written_by_pamqp(fields)
    assert ours(payload) == read_by_pamqp(payload) == fields


@patient
@given(st.floats(allow_nan=False))
def test_a_float_keeps_all_its_digits(number: float) -> None:
    headers = decode_properties(encode_properties(headers={"number": number})).headers
    assert headers == {"number": number}
    assert headers is not None
    assert math.copysign(1, headers["number"]) == math.copysign(1, number)


@patient
@given(st.integers(0, 2**64 - 1))
def test_any_second_that_can_be_written_is_read(seconds: int) -> None:
    assert decode_properties(encode_properties(timestamp=seconds)).timestamp == seconds


def test_a_text_that_is_not_utf_8_is_read_as_bytes() -> None:
    payload = encode_properties(headers={"name": "abc", "next": 1}).replace(b"abc", b"\xff\xfe\x00")
    assert ours(payload) == {"headers": {"name": b"\xff\xfe\x00", "next": 1}}


def test_no_properties_are_two_bytes() -> None:
    assert encode_properties() == encode_properties(message_id=None) == b"\0\0"
    assert decode_properties(b"\0\0") == Properties()


@pytest.mark.parametrize(
    "fields",
    [
        {"message_id": "m" * 256},
        {"message_id": "ä" * 128},
        {"message_id": 7},
        {"message_id": "\ud800"},
        {"headers": {"k" * 256: ""}},
        {"headers": {7: ""}},
        {"headers": {"number": 2**63}},
        {"headers": {"number": -(2**63) - 1}},
        {"headers": {"object": object()}},
        {"headers": "none"},
        {"priority": 256},
        {"priority": -1},
        {"timestamp": -1},
        {"timestamp": 2**64},
        {"mesage_id": "misspelt"},
    ],
)
def test_what_cannot_be_written_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        encode_properties(**fields)


@patient
@given(st.binary(max_size=80))
def test_any_bytes_are_properties_or_refused(payload: bytes) -> None:
    try:
        assert isinstance(decode_properties(payload), Properties)
    except MalformedError:
        pass


@patient
@given(fields(SHORT_TEXTS), st.data())
def test_properties_that_are_cut_short_are_refused(fields: dict[str, Any], data: st.DataObject) -> None:
    payload = encode_properties(**fields)
    cut = payload[: data.draw(st.integers(0, len(payload) - 1))]
    with pytest.raises(MalformedError):
        decode_properties(cut)


@patient
@given(fields(SHORT_TEXTS), st.data())
def test_properties_with_flipped_bits_are_read_or_refused(fields: dict[str, Any], data: st.DataObject) -> None:
    payload = bytearray(encode_properties(**fields))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert isinstance(decode_properties(bytes(payload)), Properties)
    except MalformedError:
        pass


def test_a_value_that_reaches_beyond_its_table_is_refused() -> None:
    table = b"\x01kS" + struct.pack(">I", 4)
    with pytest.raises(MalformedError, match="another length"):
        decode_properties(b"\x20\x80" + struct.pack(">I", len(table)) + table + b"\x03abc")


def test_a_table_that_nests_without_end_is_refused() -> None:
    table = b""
    for _ in range(4000):
        table = b"\1k" + b"F" + struct.pack(">I", len(table)) + table
    with pytest.raises(MalformedError):
        decode_properties(b"\x20\0" + struct.pack(">I", len(table)) + table)
