"""Reads a YAML file whose top is a mapping, and remembers the line of every entry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml


class Entry(msgspec.Struct, frozen=True):
    """One entry of the mapping; `place` is `file:line`."""

    name: str
    value: Any
    place: str


def read_yaml_mapping(path: Path) -> tuple[Sequence[Entry], Sequence[str]]:
    """The entries of the file, and one line for each fault: no such file, not UTF-8, not YAML, not a mapping, a name twice.

    An empty file has no entries. Only plain data is built, whatever tags the file has. Never raises for what is in the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return (), [f"{path}: not UTF-8 text (byte {error.start})"]
    except OSError as error:
        return (), [f"{path}: cannot be read: {error.strerror or error}"]
    loader = yaml.SafeLoader(text) if _printable(text) else None
    if loader is None:
        return (), [f"{path}: not YAML: it holds control characters"]
    try:
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return (), []
        if not isinstance(root, yaml.MappingNode):
            return (), [f"{_place(path, root)}: expected settings as `name: value` lines"]
        return _entries(path, root, loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        hint = (
            " (a value that holds ': ' or ends with ':' needs quotes)" if "mapping values" in str(error.problem) else ""
        )
        return (), [f"{path}{line}: not YAML: {error.problem or error.context}{hint}"]
    except (yaml.YAMLError, RecursionError) as error:
        return (), [f"{path}: not YAML: {type(error).__name__}"]
    finally:
        loader.dispose()


def _entries(path: Path, root: yaml.MappingNode, loader: yaml.SafeLoader) -> tuple[Sequence[Entry], Sequence[str]]:
    entries: dict[str, Entry] = {}
    faults = []
    for key, node in root.value:
        place = _place(path, key)
        if not isinstance(key, yaml.ScalarNode):
            faults.append(f"{place}: expected a name, found a {key.id}")
            continue
        try:
            value = loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            faults.append(f"{_place(path, node)}: {key.value}: {problem}")
            continue
        if key.value in entries:
            faults.append(f"{place}: {key.value!r} is there twice, first at {entries[key.value].place}")
        entries[key.value] = Entry(key.value, value, place)
    return tuple(entries.values()), faults


def _printable(text: str) -> bool:
    return yaml.reader.Reader.NON_PRINTABLE.search(text) is None


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
