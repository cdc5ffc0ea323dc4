"""Structured logs on the standard `logging`: lines for people on a terminal, one JSON object a line elsewhere.

A record's `fields` (given as `extra={"fields": {...}}`) are written next to its text. Payloads are never written unless
`log_payloads` says so, secrets never, and no text can forge a line or send control codes to a terminal.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from oncue.core.redact import HIDDEN, is_secret_name, redact, redact_urls
from oncue.core.settings import Settings
from oncue.core.times import timestamp

PAYLOAD_FIELDS = frozenset({"payload", "body", "result"})
"""The fields of a log record that hold what users send; without `log_payloads` only their sizes are written."""

_COLOURS = {
    "DEBUG": "\x1b[2m",
    "INFO": "\x1b[32m",
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[1;31m",
}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_IN_LINE = {**_CONTROLS, ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_IN_BLOCK = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\n\t"}


def configure_logs(settings: Settings, stream: TextIO) -> None:
    """Write all log records of this process to `stream`, as `settings` say; called again, the new settings replace the old.

    Only the handler made by an earlier call is taken away; those of the program stay.
    """
    terminal = stream.isatty()
    handler = _Lines(stream)
    if settings.log_format == "json" or (settings.log_format == "auto" and not terminal):
        handler.setFormatter(JsonLines(payloads=settings.log_payloads))
    else:
        coloured = terminal and not os.environ.get("NO_COLOR")
        handler.setFormatter(TextLines(payloads=settings.log_payloads, coloured=coloured))
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, _Lines)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())


class JsonLines(logging.Formatter):
    """Each record as one JSON object: time, level, logger, message, its fields, and a traceback if there is one."""

    def __init__(self, *, payloads: bool = False) -> None:
        super().__init__()
        self._payloads = payloads

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": timestamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in _fields(record, self._payloads):
            line.setdefault(name, value)
        if trace := _traceback(self, record):
            line["traceback"] = redact_urls(trace)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """Each record as `time LEVEL message  field=value …`, its traceback on the lines below."""

    def __init__(self, *, payloads: bool = False, coloured: bool = False) -> None:
        super().__init__()
        self._payloads = payloads
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = self._paint(_COLOURS.get(record.levelname, ""), f"{record.levelname:<7}")
        message = redact(record.getMessage()).translate(_IN_LINE)
        fields = " ".join(f"{_word(name)}={_word(value)}" for name, value in _fields(record, self._payloads))
        line = f"{self._paint(_DIM, time)} {level} {message}" + (f"  {self._paint(_DIM, fields)}" if fields else "")
        if trace := _traceback(self, record):
            line += "\n" + redact_urls(trace).translate(_IN_BLOCK)
        return line

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._coloured and colour else text


class _Lines(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """A log that nobody can read any more must not end the work; a record that cannot be formatted is our fault."""
        import sys

        if not isinstance(sys.exception(), OSError | ValueError):
            super().handleError(record)


def _fields(record: logging.LogRecord, payloads: bool) -> list[tuple[str, Any]]:
    fields = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return []
    return [(str(name), _value(str(name), value, payloads)) for name, value in fields.items()]


def _value(name: str, value: object, payloads: bool) -> Any:
    if name in PAYLOAD_FIELDS and not payloads:
        return f"<{len(value)} bytes>" if isinstance(value, bytes | bytearray) else "<not shown>"
    if is_secret_name(name):
        return HIDDEN
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return redact(value.decode("utf-8", "replace"))
    return redact(str(value))


def _word(value: object) -> str:
    text = str(value).translate(_IN_LINE)
    return json.dumps(text, ensure_ascii=False) if not text or any(each in text for each in ' "=') else text


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
