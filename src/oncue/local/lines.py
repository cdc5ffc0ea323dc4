"""What runtimes and sidecars print: behind the name of their actor for people, as log records for machines."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from functools import partial

from oncue.local.processes import Lines

_COLOURS = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")
_WIDEST = 24
"""Up to so many characters of a name, what follows stands in one column."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if code != ord("\t")}
_RECORD = re.compile(r"\S+ \S+ - (?P<logger>\S+) - (?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) - (?P<text>.*)")
"""How a runtime writes its log."""
_OURS = "oncue.runtime"

_log = logging.getLogger("oncue.local")


class Prefixed:
    """Lines to standard error, each behind the name of its process. What a line contains cannot forge another."""

    def __init__(self, names: Iterable[str], *, coloured: bool) -> None:
        self._colours: dict[str, str] = {}
        self._coloured = coloured
        self._width = 0
        for name in names:
            self._known(name)

    def of(self, actor: str, number: int) -> Lines:
        """For the process of this actor's replica."""
        return partial(self._write, actor, f"{actor}/{number}")

    def _write(self, actor: str, name: str, line: str) -> None:
        colour = self._known(actor)
        self._width = max(self._width, min(len(name), _WIDEST))
        record = _RECORD.fullmatch(line)
        if record is not None and record["logger"] == _OURS:
            if not _log.isEnabledFor(logging.getLevelNamesMapping()[record["level"]]):
                return
            line = record["text"]
        prefix = f"{name.ljust(self._width)} |"
        if self._coloured:
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        sys.stderr.write(f"{prefix} {line.translate(_CONTROLS)}\n")

    def _known(self, actor: str) -> str:
        self._width = max(self._width, min(len(actor) + 2, _WIDEST))
        return self._colours.setdefault(actor, _COLOURS[len(self._colours) % len(_COLOURS)])


class Records:
    """Lines as log records with the actor's name beside them."""

    def of(self, actor: str, number: int) -> Lines:
        """For the process of this actor's replica."""
        return partial(self._write, actor, number)

    def _write(self, actor: str, number: int, line: str) -> None:
        fields = {"actor": actor, "replica": number}
        record = _RECORD.fullmatch(line)
        if record is None:
            _log.info(line, extra={"fields": fields})
            return
        level = logging.getLevelNamesMapping()[record["level"]]
        logging.getLogger(record["logger"]).log(level, record["text"], extra={"fields": fields})
