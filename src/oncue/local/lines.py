"""What runtimes and sidecars print: behind the name of their actor for people, as log records for machines."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from oncue.local.processes import Lines
from oncue.logs import TextLines

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
        self._format = TextLines().format
        for name in names:
            self._known(name)

    def of(self, actor: str, number: int) -> Lines:
        """For the runtime of this actor's replica."""
        return partial(self._write_runtimes, actor, f"{actor}/{number}")

    def of_sidecar(self, actor: str, number: int) -> Lines:
        """For the sidecar beside it."""
        return partial(self._write_sidecars, actor, f"{actor}/{number}")

    def _write_runtimes(self, actor: str, name: str, line: str) -> None:
        record = _RECORD.fullmatch(line)
        if record is None or record["logger"] != _OURS:
            self._write(actor, name, line)
        elif _log.isEnabledFor(logging.getLevelNamesMapping()[record["level"]]):
            self._write(actor, name, record["text"])

    def _write_sidecars(self, actor: str, name: str, line: str) -> None:
        record = _record_of(line)
        if record is None:
            self._write(actor, name, line)
        elif _log.isEnabledFor(record.levelno):
            for each in self._format(record).splitlines():
                self._write(actor, name, each)

    def _write(self, actor: str, name: str, line: str) -> None:
        colour = self._known(actor)
        self._width = max(self._width, min(len(name), _WIDEST))
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
        """For the runtime of this actor's replica."""
        return partial(self._write, {"actor": actor, "replica": number})

    def of_sidecar(self, actor: str, number: int) -> Lines:
        """For the sidecar beside it, whose records stay what they are."""
        return partial(self._hand_on, {"actor": actor, "replica": number})

    def _hand_on(self, fields: Mapping[str, Any], line: str) -> None:
        record = _record_of(line, fields)
        if record is None:
            self._write(fields, line)
            return
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    def _write(self, fields: Mapping[str, Any], line: str) -> None:
        record = _RECORD.fullmatch(line)
        if record is None:
            _log.info(line, extra={"fields": fields})
            return
        level = logging.getLevelNamesMapping()[record["level"]]
        logging.getLogger(record["logger"]).log(level, record["text"], extra={"fields": fields})


class _Told(msgspec.Struct):
    """What is in each of the records that programs of ours write for machines; their fields stand beside these."""

    time: datetime
    level: Literal["debug", "info", "warning", "error", "critical"]
    logger: str
    message: str
    traceback: str | None = None


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _record_of(line: str, more: Mapping[str, Any] = MappingProxyType({})) -> logging.LogRecord | None:
    """The record that a program of ours wrote as this line, with `more` fields; None for a line that is none."""
    try:
        fields = _decode(line)
        told = msgspec.convert(fields, _Told)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    found = {
        "name": told.logger,
        "levelname": told.level.upper(),
        "levelno": logging.getLevelNamesMapping()[told.level.upper()],
        "msg": told.message,
        "created": told.time.timestamp(),
        "stack_info": told.traceback,
        "fields": {name: value for name, value in fields.items() if name not in _Told.__struct_fields__} | {**more},
    }
    return logging.makeLogRecord(found)
