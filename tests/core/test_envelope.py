"""The envelope: what is read is kept, what is no envelope is refused with Asya's words, and nothing else happens."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from oncue.core.envelope import Envelope, Route, check_turn, decode_envelope
from oncue.core.errors import InvalidEnvelopeError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KNOWN = {"id", "parent_id", "route", "headers", "payload"}
OTHERS = st.dictionaries(TEXT.filter(lambda name: name not in KNOWN | {"actors", "current"}), VALUES, max_size=3)

# Ways to write JSON that a parser and writer would not give back as they were.
ODD = [
    b'{"z":1.50,"a":[ ]}',
    b"123456789012345678901234567890",
    b"1e2",
    b"-0",
    b'"\\u00e9\\/"',
    b'{"a":1,"a":2}',
    b"0.1000000000000000055511151231257827",
    b"[" * 300 + b"]" * 300,
]


def read(body: bytes) -> Envelope:
    return decode_envelope(body)


def refused(body: bytes) -> InvalidEnvelopeError:
    with pytest.raises(InvalidEnvelopeError) as caught:
        decode_envelope(body)
    return caught.value


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Envelopes as anybody may write them."""
    route = {"actors": draw(st.lists(TEXT, max_size=4)), "current": draw(st.integers(-2, 6)), **draw(OTHERS)}
    fields = {"id": draw(TEXT.filter(bool)), "route": route, "payload": draw(VALUES), **draw(OTHERS)}
    if draw(st.booleans()):
        fields["headers"] = draw(st.dictionaries(TEXT, VALUES, min_size=1, max_size=3))
    if draw(st.booleans()):
        fields["parent_id"] = draw(TEXT)
    return fields


@given(documents())
def test_every_field_is_there_again_after_reading_and_writing(document: dict[str, Any]) -> None:
    envelope = read(json.dumps(document).encode())
    assert json.loads(envelope.encode()) == document
    assert read(envelope.encode()) == envelope


@given(documents(), VALUES, st.integers(0, 3))
def test_a_hop_changes_id_parent_position_and_payload_and_nothing_else(
    document: dict[str, Any], result: Any, index: int
) -> None:
    envelope = read(json.dumps(document).encode())
    hop = envelope.next(Raw(json.dumps(result).encode()), route=envelope.route.advanced(), index=index)
    wanted = {
        **document,
        "payload": result,
        "route": {**document["route"], "current": document["route"]["current"] + 1},
    }
    if index:
        wanted |= {"id": f"{document['id']}-{index}", "parent_id": document["id"]}
    assert json.loads(hop.encode()) == wanted


@pytest.mark.parametrize("raw", ODD)
def test_payload_and_unknown_fields_keep_their_bytes_over_hops(raw: bytes) -> None:
    body = b'{ "deadline" : %b, "id":"a","route":{"metadata": %b ,"actors":["x","y"]},"payload":  %b  }' % ((raw,) * 3)
    envelope = read(body)
    envelope = read(envelope.next(envelope.payload, route=envelope.route.advanced()).encode())
    assert envelope.route.actor == "y"
    assert bytes(envelope.payload) == raw
    assert bytes(envelope.extra["deadline"]) == raw
    assert bytes(envelope.route.extra["metadata"]) == raw
    plain = read(b'{"id":"a","route":{"actors":["x"]},"payload":%b}' % raw)
    assert bytes(plain.payload) == raw
    assert raw in plain.encode()


def test_large_whole_numbers_in_headers_lose_nothing() -> None:
    body = b'{"id":"a","route":{"actors":["x"]},"headers":{"n":18446744073709551617},"payload":1}'
    assert b'{"n":18446744073709551617}' in read(body).encode()


def test_what_may_be_left_out_has_its_default() -> None:
    envelope = read(b'{"id":"a","route":{"actors":["x"]}}')
    assert envelope == Envelope("a", Route(("x",), 0))
    assert (bytes(envelope.payload), envelope.parent_id, dict(envelope.headers)) == (b"null", None, {})
    assert envelope.encode() == b'{"id":"a","route":{"actors":["x"],"current":0},"payload":null}'


@pytest.mark.parametrize("unknown", ["", ',"more":1'])
def test_a_field_that_is_null_is_absent(unknown: str) -> None:
    body = '{"id":"a","parent_id":null,"headers":null,"route":{"actors":["x"],"current":null}' + unknown + "}"
    envelope = read(body.encode())
    assert (envelope.parent_id, dict(envelope.headers), envelope.route.actor) == (None, {}, "x")
    assert b"headers" not in envelope.encode() and b"parent_id" not in envelope.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"null",
        b"[]",
        b'"a"',
        b"7",
        b'{"id":"a"}x',
        b'\xef\xbb\xbf{"id":"a"}',
        b'{"id":"\xff"}',
        b'{"id":"a","route":{"actors":["x"]},"payload":NaN}',
        b'{"id":"a","route":{"actors":["x"]},"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id":"a","route":{"actors":["x"],"current":' + b"1" * 5000 + b"}}",
        b'{"id":"a","more":1,"route":{"actors":["x"],"current":' + b"1" * 5000 + b"}}",
    ],
)
def test_what_does_not_parse_is_a_parse_error(body: bytes) -> None:
    error = refused(body)
    assert error.reason == "parse_error"
    assert str(error).startswith("Failed to parse message: ")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ('"id":7', "field 'id': Expected `str | null`, got `int`"),
        ('"id":"a","parent_id":[]', "field 'parent_id': Expected `str | null`, got `array`"),
        ('"id":"a","headers":[]', "field 'headers': Expected `object | null`, got `array`"),
        ('"id":"a","route":"x"', "field 'route': Expected `object | null`, got `str`"),
        ('"id":"a","route":{"actors":"x"}', "field 'route.actors': Expected `array | null`, got `str`"),
        ('"id":"a","route":{"actors":["x",1]}', "field 'route.actors': Expected `str`, got `int` - at `$[1]`"),
        ('"id":"a","route":{"current":"0"}', "field 'route.current': Expected `int | null`, got `str`"),
        ('"id":"a","route":{"current":true}', "field 'route.current': Expected `int | null`, got `bool`"),
        ('"id":"a","route":{"current":1.0}', "field 'route.current': Expected `int | null`, got `float`"),
    ],
)
@pytest.mark.parametrize("unknown", ["", ',"more":1'])
def test_a_field_of_the_wrong_type_is_a_parse_error_that_names_it(fields: str, fault: str, unknown: str) -> None:
    error = refused(f"{{{fields}{unknown}}}".encode())
    assert (str(error), error.reason) == (f"Failed to parse message: {fault}", "parse_error")


@pytest.mark.parametrize("id", ["", '"id":"",', '"id":null,'])
@pytest.mark.parametrize("unknown", ["", '"more":1,'])
def test_an_envelope_without_id_is_refused_with_asyas_words(id: str, unknown: str) -> None:
    error = refused(f'{{{id}{unknown}"route":{{"actors":["x"],"current":0}},"payload":1}}'.encode())
    assert (str(error), error.reason) == ("Envelope missing required 'id' field", "validation_error")


@pytest.mark.parametrize(
    ("route", "found"),
    [
        (Route(("x", "y"), 1), "y"),
        (Route(("x", "y"), 2), ""),
        (Route(("x", "y"), -1), ""),
        (Route(()), ""),
        (Route(("x",), 10**30), ""),
    ],
)
def test_another_actors_turn_is_refused_with_asyas_words(route: Route, found: str) -> None:
    with pytest.raises(InvalidEnvelopeError) as caught:
        check_turn(Envelope("a", route), "x")
    assert str(caught.value) == f"Route mismatch: message routed to wrong actor (expected: x, actual: {found})"
    assert caught.value.reason == "route_mismatch"
    check_turn(Envelope("a", Route(("x",))), "x")


@given(st.lists(TEXT.filter(bool), max_size=5))
def test_a_route_is_walked_actor_by_actor_and_then_finished_for_good(actors: list[str]) -> None:
    route = Route(tuple(actors))
    walked = []
    while route.actor is not None:
        walked.append(route.actor)
        route = route.advanced()
    assert walked == actors
    assert route.advanced().actor is None


def test_ids_of_children_derive_from_the_parents_alone() -> None:
    parent = Envelope.new(["x", "y"], b"1", id="a", headers={"trace": "t"})
    route = parent.route.advanced()
    children = [parent.next(Raw(b"2"), route=route, index=index) for index in range(3)]
    assert [(child.id, child.parent_id) for child in children] == [("a", None), ("a-1", "a"), ("a-2", "a")]
    assert children[1].next(Raw(b"3"), route=route, index=2).id == "a-1-2"
    assert {child.headers["trace"] for child in children} == {"t"}


def test_a_new_envelope_has_a_new_id_and_headers_can_be_laid_over_its_own() -> None:
    one, other = Envelope.new(["x"], b"{}"), Envelope.new(["x"], b"{}")
    assert one.id != other.id and len(one.id) == 36
    laid = Envelope.new(["x"], b"1", headers={"a": 1, "b": 2}).with_headers({"b": 3})
    assert laid.headers == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("deadline", "expired"),
    [
        ('"2026-11-24T09:00:00Z"', True),
        ('"2026-11-24T11:00:00+02:00"', True),
        ('"2026-11-24T09:00:01Z"', False),
        ('"2026-11-24T08:00:00"', False),
        ('"0001-01-01T00:00:00+14:00"', True),
        ('"9999-12-31T23:59:59-14:00"', False),
        ('"soon"', False),
        ("17", False),
        ("null", False),
    ],
)
def test_a_deadline_counts_when_it_is_a_moment_with_a_zone(deadline: str, expired: bool) -> None:
    envelope = read(f'{{"id":"a","route":{{"actors":["x"]}},"deadline":{deadline}}}'.encode())
    assert envelope.expired(datetime(2026, 11, 24, 9, tzinfo=UTC)) is expired


def test_without_a_moment_given_a_deadline_is_compared_with_now() -> None:
    for ahead in (-60, 60):
        moment = datetime.now(UTC) + timedelta(seconds=ahead)
        envelope = Envelope("a", Route(()), extra={"deadline": Raw(msgspec.json.encode(moment))})
        assert envelope.expired() is (ahead < 0)
    assert not Envelope("a", Route(())).expired()


_PIECES = st.sampled_from(
    [
        b"{", b"}", b"[", b"]", b",", b":", b'"id"', b'"a"', b'"route"', b'"actors"', b'"current"', b"null", b"1", b"1.5",
        b"1e999", b'"payload"', b'"headers"', b'"\\ud800"', b"\xff", b'"parent_id"', b" ", b"-", b"true", b'"', b"\x00",
    ]
)  # fmt: skip


@given(st.binary(max_size=60) | st.lists(_PIECES, max_size=25).map(b"".join))
@example(b'{"id":"a","route":{},"headers":{"a":1e999}}')
@example(b'{"id":"a","route":{},"headers":{"a":"\xff"},"x":1}')
@example(b'{"id":"a","route":{},"headers":{"a":' + b"1" * 5000 + b"}}")
def test_any_bytes_are_an_envelope_or_refused(body: bytes) -> None:
    try:
        envelope = decode_envelope(body)
    except InvalidEnvelopeError as error:
        assert error.reason in {"parse_error", "validation_error"}
    else:
        assert read(envelope.encode()) == envelope


@given(documents(), st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_a_damaged_envelope_is_an_envelope_or_refused(document: dict[str, Any], at: int, damage: bytes) -> None:
    body = json.dumps(document).encode()
    at %= len(body)
    body = body[:at] + damage + body[at + len(damage) :]
    try:
        envelope = decode_envelope(body)
    except InvalidEnvelopeError:
        return
    assert isinstance(envelope.id, str)
    check_turn(Envelope(envelope.id, Route(("x",))), "x")
