"""Payloads become what annotations say, results become JSON, and what does not fit is said with its path."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from oncue.core.errors import ConfigError, InvalidPayloadError, InvalidResultError, InvalidValueError
from oncue.workloads.values import reader, write


@dataclass
class Size:
    width: int
    height: int = 1


@dataclass
class Photo:
    path: str
    sizes: list[Size] = field(default_factory=list)


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Person(TypedDict):
    name: str


class Colour(Enum):
    RED = "red"


class Node(msgspec.Struct):
    next: Node | None = None


class Stranger:
    pass


def read(annotation: Any, text: str) -> Any:
    return reader(annotation)(Raw(text.encode()))


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Any, '{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (object, "1", 1),
        (int, "5", 5),
        (float, "5", 5.0),
        (str, '"x"', "x"),
        (list[int], "[1]", [1]),
        (int | None, "null", None),
        (int | str, '"x"', "x"),
        (dict[str, Size], '{"a": {"width": 2}}', {"a": Size(2)}),
        (Photo, '{"path": "p", "sizes": [{"width": 2, "height": 3}]}', Photo("p", [Size(2, 3)])),
        (Point, '{"x": 1}', Point(1.0)),
        (Person, '{"name": "Ada"}', {"name": "Ada"}),
        (Colour, '"red"', Colour.RED),
        (Literal["a", "b"], '"b"', "b"),
        (datetime, '"2026-01-02T03:04:05Z"', datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (Node, '{"next": {"next": null}}', Node(Node())),
    ],
)
def test_a_payload_becomes_what_the_annotation_says(annotation: Any, text: str, value: Any) -> None:
    assert read(annotation, text) == value


@pytest.mark.parametrize(
    ("annotation", "text", "path"),
    [
        (int, '"5"', "Expected `int`, got `str`"),
        (Photo, '{"path": "p", "sizes": [{"width": "wide"}]}', r"\$\.sizes\[0\]\.width"),
        (Photo, "{}", "missing required field `path`"),
        (Point, '{"x": "a"}', r"\$\.x"),
        (Person, '{"name": 1}', r"\$\.name"),
        (Any, '"\udcff"', "."),
        (Any, "1e999", "out of range"),
    ],
)
def test_a_payload_of_another_type_is_refused_with_the_path_of_the_bad_field(
    annotation: Any, text: str, path: str
) -> None:
    with pytest.raises(InvalidPayloadError, match=path):
        reader(annotation)(Raw(text.encode(errors="surrogateescape")))


@pytest.mark.parametrize("annotation", [Stranger, list[Stranger], dict[str, Stranger | None], tuple[int, Stranger]])
def test_a_type_that_json_cannot_be_read_into_is_refused(annotation: Any) -> None:
    with pytest.raises(ConfigError, match="Stranger is no type that JSON can be read into"):
        reader(annotation)


def test_an_ambiguous_union_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than one array-like"):
        reader(list[int] | set[int])


def result(value: Any) -> bytes:
    return bytes(write(value, "the result", InvalidResultError))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b"null"),
        ({"a": None}, b'{"a":null}'),
        ("null", b'"null"'),
        (Photo("p", [Size(2)]), b'{"path":"p","sizes":[{"width":2,"height":1}]}'),
        (Point(1), b'{"x":1,"y":0.0}'),
        ({1: "a"}, b'{"1":"a"}'),
        (Decimal("1.50"), b'"1.50"'),
        (2**70, b"1180591620717411303424"),
        (Colour.RED, b'"red"'),
    ],
)
def test_a_result_becomes_json(value: Any, text: bytes) -> None:
    assert result(value) == text


def looped() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Stranger(), r"found a value of type .*Stranger - at `\$`"),
        ({"a": [1, {"b": Stranger()}]}, r"Stranger - at `\$\.a\[1\]\.b`"),
        (Photo("p", [Stranger()]), r"Stranger - at `\$\.sizes\[0\]`"),  # type: ignore[list-item]
        (Point(Stranger()), r"Stranger - at `\$\.x`"),  # type: ignore[arg-type]
        ({"a": {(1, 2): 3}}, r"a key is of type tuple - at `\$\.a`"),
        (["\ud800"], r"half a character .* - at `\$\[0\]`"),
        (looped(), "nested too deeply, or holds itself"),
        (math.nan, r"nan is no JSON number - at `\$`"),
        ({"a": [None, math.inf]}, r"inf is no JSON number - at `\$\.a\[1\]`"),
        (Point(-math.inf), r"-inf is no JSON number - at `\$\.x`"),
        (Photo("p", [Size(math.nan)]), r"nan is no JSON number - at `\$\.sizes\[0\]\.width`"),  # type: ignore[arg-type]
        (map(str, [1]), "found a value of type map"),
    ],
)
def test_a_result_that_json_cannot_hold_is_refused_with_its_type_and_path(value: Any, text: str) -> None:
    with pytest.raises(InvalidResultError, match=text):
        result(value)


def test_the_error_is_of_the_callers_kind_and_begins_with_its_words() -> None:
    with pytest.raises(InvalidValueError, match="^payload 7 cannot be written"):
        write(Stranger(), "payload 7", InvalidValueError)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


def floats_in(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from floats_in(each)


@given(plain)
def test_every_plain_value_comes_back_as_it_was_unless_it_holds_what_json_cannot(value: Any) -> None:
    if all(map(math.isfinite, floats_in(value))):
        assert read(Any, result(value).decode()) == value
    else:
        with pytest.raises(InvalidResultError, match="is no JSON number"):
            result(value)


def test_what_is_json_already_stays_as_it_is() -> None:
    text = Raw(b'{"a": null,  "b": 1}')
    assert bytes(write(text, "it", InvalidResultError)) == bytes(text)
