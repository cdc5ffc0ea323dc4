"""What verbs print: tables for people, aligned text in pipes, JSON where asked. Texts of others cannot forge any of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import click
import msgspec

from oncue.core.times import format_duration

_T = TypeVar("_T")

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_GAP = "  "
_LEAST = 10
"""Characters that a column keeps, however narrow the terminal is."""
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {10: "\\n", 13: "\\r", 9: "\\t"}


class Column(msgspec.Struct, Generic[_T], frozen=True):
    """A column of a table: its heading, the text of a row in it, and whether it is right-aligned or cut where lines are short."""

    heading: str
    text: Callable[[_T], str]
    right: bool = False
    cut: bool = False


def write_table(rows: Sequence[_T], columns: Sequence[Column[_T]], *, empty: str) -> None:
    """Print `rows`; a line on standard error says `empty` when there are none."""
    if not rows:
        click.echo(empty, err=True)
        return
    cells = [[one_line(column.text(row)) for column in columns] for row in rows]
    widths = [max(len(column.heading), *(len(line[place]) for line in cells)) for place, column in enumerate(columns)]
    if sys.stdout.isatty():
        _write_rich(cells, columns, widths)
        return
    for line in ([column.heading for column in columns], *cells):
        padded = [
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo(_GAP.join(padded).rstrip())


def _write_rich(cells: Sequence[Sequence[str]], columns: Sequence[Column[Any]], widths: Sequence[int]) -> None:
    """The table in the width of the terminal: columns that may be cut share what the others leave, but not too little."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = Console().width
    gaps = len(_GAP) * (len(columns) - 1)
    fixed = sum(width for width, column in zip(widths, columns, strict=True) if not column.cut)
    room = max(terminal - fixed - gaps, _LEAST)
    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            width=min(width, room) if column.cut else width,
            no_wrap=True,
            overflow="ellipsis",
        )
    for line in cells:
        table.add_row(*(Text(text) for text in line))
    needed = max(terminal, fixed + gaps + room + len(_GAP))  # what is wider than the terminal is wrapped by it, not cut
    Console(highlight=False, width=needed).print(table, crop=False)


def write_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a line each; what has several lines goes below its name."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if "\n" in value.strip():
            click.echo(f"{_bold(name)}:")
            for line in value.strip().splitlines():
                click.echo(f"  {one_line(line)}")
        elif value:
            click.echo(f"{_bold(name)}:{' ' * (width - len(name))} {one_line(value)}")


def _bold(text: str) -> str:
    return click.style(text, bold=True) if sys.stdout.isatty() else text


def write_json(value: Any) -> None:
    """Print one JSON value, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def write_json_list(values: Sequence[Any]) -> None:
    """Print a JSON list with one item a line, so that it can be read by line as well."""
    lines = ",\n".join(msgspec.json.encode(value).decode() for value in values)
    click.echo(f"[\n{lines}\n]" if values else "[]")


def one_line(text: str) -> str:
    """`text` without line breaks and control codes, which show as escapes."""
    return text.translate(_ESCAPED)


def plural(count: int, noun: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago `moment` was, in its two largest units; empty when unknown."""
    if moment is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 1:
        return "now"
    for unit in (86400.0, 3600.0, 60.0, 1.0):
        if seconds >= unit * 10 or unit == 1.0:
            seconds -= seconds % unit
            break
    return format_duration(seconds)


def count_of(number: int | None) -> str:
    """A count as a text; `?` where the broker cannot tell."""
    return "?" if number is None else str(number)


def body_as_json(body: bytes) -> dict[str, Any]:
    """A message's body for JSON output: under `body` as JSON or text, or under `body_base64` when it is neither."""
    try:
        msgspec.json.decode(body)
        return {"body": msgspec.Raw(body)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # not JSON: text, or bytes
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        import base64

        return {"body_base64": base64.b64encode(body).decode()}


def body_as_text(body: bytes, longest: int | None = None) -> str:
    """A message's body for people, cut to `longest` characters."""
    text = body[: None if longest is None else longest * 4].decode("utf-8", "replace")
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
