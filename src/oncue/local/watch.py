"""What belongs to a handler, and whether it was edited: its module, and what that imports, under the working folder.

Imports are read, not run, so one that is made up at run time is not known here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Stamp = tuple[int, int, int]
"""When a file was last written, how long it is, and which file it is."""


class Watched:
    """Files and how they were when last looked at. Blocks, for about two microseconds a file."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._stamps = stamps(files)

    def changed(self, files: Iterable[Path]) -> set[Path]:
        """The files that were written, removed or added since the last call, which then watches `files`."""
        before, self._stamps = self._stamps, stamps(files)
        every = before.keys() | self._stamps.keys()
        return {path for path in every if before.get(path) != self._stamps.get(path)}


def stamps(files: Iterable[Path]) -> Mapping[Path, Stamp]:
    """The stamps of those that are there."""
    found = {}
    for path in files:
        try:
            known = path.stat()
        except OSError:
            continue
        found[path] = (known.st_mtime_ns, known.st_size, known.st_ino)
    return found


class Modules:
    """Finds the files of handlers, and reads each file again only when it was written."""

    def __init__(self) -> None:
        self._imports: dict[Path, tuple[Stamp, frozenset[str]]] = {}

    def files(self, folder: Path, handler: str) -> set[Path]:
        """The files under `folder` that `handler` (`module.function`) is made of, as far as imports tell."""
        found: set[Path] = set()
        left = [handler]
        while left:
            for path in _files(folder, left.pop()):
                if path not in found:
                    found.add(path)
                    left += self._of(folder, path)
        return found

    def _of(self, folder: Path, path: Path) -> frozenset[str]:
        stamp = stamps([path]).get(path)
        known = self._imports.get(path)
        if stamp is None or (known is not None and known[0] == stamp):
            return known[1] if known is not None else frozenset()
        package = path.relative_to(folder).parent.parts
        names = frozenset(_imported(path, package))
        self._imports[path] = (stamp, names)
        return names


def _files(folder: Path, name: str) -> Iterator[Path]:
    """The files that importing the dotted `name` from `folder` would load; the last parts may be names inside of a module."""
    place = folder
    for part in name.split("."):
        place /= part
        if place.is_dir():
            if (place / "__init__.py").is_file():
                yield place / "__init__.py"
            continue
        if place.with_suffix(".py").is_file():
            yield place.with_suffix(".py")
        return


def _imported(path: Path, package: tuple[str, ...]) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
