"""JSON lines in pieces, whatever the pieces are."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.cli.lines import Faults, Line, lines_of, read_lines, read_payload
from oncue.core.errors import InvalidValueError


async def read(pieces: Sequence[bytes]) -> list[Line]:
    """What is read of a pipe into which these pieces are written."""
    reading, writing = os.pipe()

    def write() -> None:
        for piece in pieces:
            os.write(writing, piece)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return [line async for lines in lines_of(reading) for line in lines]
    finally:
        writer.join()
        os.close(reading)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=20))
def test_lines_are_the_same_however_they_are_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    if whole.startswith(b"\xef\xbb\xbf"):
        return
    expected = [Line(number, text) for number, text in enumerate(whole.split(b"\n"), 1) if text and not text.isspace()]
    assert asyncio.run(read([piece for piece in pieces if piece])) == expected


async def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert await read([b"\xef\xbb\xbf1\n2\n"]) == [Line(1, b"1"), Line(2, b"2")]


async def test_a_long_line_arrives_whole() -> None:
    assert await read([b"x" * 60_000, b"y" * 60_000, b"\nz"]) == [Line(1, b"x" * 60_000 + b"y" * 60_000), Line(2, b"z")]


async def test_giving_up_in_the_middle_leaves_nothing_waiting() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"1\n")
    lines = lines_of(reading)
    assert await anext(lines) == [Line(1, b"1")]
    await lines.aclose()
    os.close(writing)
    os.close(reading)


async def test_an_error_of_reading_is_raised() -> None:
    folder = os.open(".", os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        async for _ in lines_of(folder):
            raise AssertionError("a folder has no lines")
    os.close(folder)


@pytest.mark.parametrize(
    "text", [b"NaN", b"Infinity", b"'a'", b"", b"1 2", b'"\xff"', b'"\\ud800"', b"[" * 5000, b"1e999"]
)
def test_what_is_no_json_is_refused_with_a_reason(text: bytes) -> None:
    with pytest.raises(InvalidValueError, match="^not JSON: ."):
        read_payload(text)


def test_payloads_stay_as_they_were_written() -> None:
    assert bytes(read_payload(b'{"a": 1.0, "a": 2}')) == b'{"a": 1.0, "a": 2}'


def test_faults_keep_the_first_and_count_the_rest() -> None:
    faults = Faults()
    assert [bytes(each) for each in read_lines([Line(1, b"1"), *(Line(n, b"x") for n in range(2, 9))], faults)] == [
        b"1"
    ]
    assert [text.split(":")[0] for text in faults.texts()] == [
        "line 2",
        "line 3",
        "line 4",
        "line 5",
        "line 6",
        "and 2 more lines that are not JSON",
    ]
