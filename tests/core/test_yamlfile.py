"""Reading a YAML file: every entry with its line, every fault as one line, and nothing that a file can do beyond that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oncue.core.yamlfile import read_yaml_mapping


def read(folder: Path, text: str | bytes) -> tuple[dict[str, tuple[object, int]], list[str]]:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    entries, faults = read_yaml_mapping(path)
    found = {entry.name: (entry.value, int(entry.place.removeprefix(f"{path}:"))) for entry in entries}
    return found, [fault.removeprefix(f"{path}") for fault in faults]


def test_entries_come_with_their_lines_and_plain_values(tmp_path: Path) -> None:
    found, faults = read(tmp_path, "# first\na: 1\n\nb: [x, 2.5]\nc:\n  d: true\n'e': ~\n7: seven\n")
    assert found == {"a": (1, 2), "b": (["x", 2.5], 4), "c": ({"d": True}, 5), "e": (None, 7), "7": ("seven", 8)}
    assert faults == []


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", "\ufeff", "\ufeff# nothing"])
def test_a_file_without_entries_has_none_and_no_fault(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == ({}, [])


def test_a_byte_order_mark_and_other_line_ends_make_no_difference(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa: 1\r\nb: 2\r\n") == ({"a": (1, 1), "b": (2, 2)}, [])


def test_a_name_that_is_there_twice_is_a_fault_with_both_places(tmp_path: Path) -> None:
    found, faults = read(tmp_path, "a: 1\nb: 2\na: 3\n")
    assert set(found) == {"a", "b"}
    assert faults == [f":3: 'a' is there twice, first at {tmp_path}/file.yaml:1"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\n---\nb: 2\n", ":2: not YAML: but found another document"),
        ("a: 1\n b: 2\n", ":2: not YAML: mapping values are not allowed here"),
        ("a: [1\n", ":2: not YAML: "),
        ("a: *b\n", ":1: not YAML: found undefined alias"),
        ("\ta: 1\n", ":1: not YAML: found character '\\t'"),
        ("a", ":1: expected settings as"),
        ("a: \x1b[31m\n", ": not YAML: it holds control characters"),
        ("a: !!python/object/apply:os.system [exit]\n", ":1: a: could not determine a constructor"),
        ("a: 2026-13-45\n", ":1: a: month must be in 1..12"),
        ("a: &a [*a]\n", ":1: a: found unconstructable recursive node"),
        ("a: " + "[" * 2000 + "]" * 2000, ": not YAML: RecursionError"),
    ],
)
def test_what_cannot_be_read_is_one_fault(tmp_path: Path, text: str, fault: str) -> None:
    _, faults = read(tmp_path, text)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_the_good_entries_of_a_file_with_a_bad_one_are_there(tmp_path: Path) -> None:
    found, faults = read(tmp_path, "a: 1\nb: !!nothing x\nc: 3\n")
    assert found == {"a": (1, 1), "c": (3, 3)}
    assert len(faults) == 1


def test_files_that_cannot_be_opened_are_one_fault(tmp_path: Path) -> None:
    assert read_yaml_mapping(tmp_path / "none.yaml")[1] == [
        f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    ]
    assert read_yaml_mapping(tmp_path)[1] == [f"{tmp_path}: cannot be read: Is a directory"]
    assert read(tmp_path, b"a: \xff")[1] == [": not UTF-8 text (byte 3)"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    assert read_yaml_mapping(path)[1] == [f"{path}: cannot be read: Permission denied"]
