"""The demo's report: what became of each source file, read from where `oncue up` keeps it, and checked by counting directly."""

from __future__ import annotations

import ast
import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from oncue.core.envelope import decode_envelope
from oncue.dead import list_dead
from oncue.results import Result, open_results
from oncue.transports import open_transport

MOST = 100_000
SHOWN = 12


class Ended(NamedTuple):
    """How the work ended: the payload of each result, path and error of each failed one, and the path of each dead letter."""

    rows: Sequence[Mapping[str, Any]]
    failed: Sequence[tuple[str, str]]
    dead: Sequence[str]


def read(store: Path) -> Ended:
    """What is in the file that holds both queues and results."""
    return asyncio.run(_read(f"sqlite:///{store}"))


async def _read(url: str) -> Ended:
    results = open_results(url)
    transport = await open_transport(url)
    try:
        ended = await results.list(limit=MOST)
        letters = [
            letter
            for name in await transport.queues()
            if name.name.endswith("-dlq")
            for letter in await list_dead(transport, name.name, limit=MOST)
        ]
    finally:
        await transport.close()
        await results.close()
    rows = [payload_of(each.envelope) for each in ended if each.status == "succeeded"]
    failed = [failed_path(each) for each in ended if each.status == "failed"]
    return Ended(rows, failed, [payload_of(letter.original.body) for letter in letters])


def payload_of(envelope: bytes) -> Any:
    return json.loads(bytes(decode_envelope(envelope).payload))


def failed_path(result: Result) -> tuple[str, str]:
    """The path and the error that an error envelope tells of."""
    payload = payload_of(result.envelope)
    return payload["original_payload"], payload["details"]["message"]


def show(console: Console, ended: Ended, library: Path) -> None:
    """What was found."""
    rows = ended.rows

    def first(key: str) -> Sequence[Mapping[str, Any]]:
        return sorted(rows, key=lambda row: (-row[key], row["path"]))[:5]

    def name(path: str) -> str:
        return str(Path(path).relative_to(library))

    imports = Counter(module for row in rows for module in row["imports"])
    table(
        console,
        "Largest files",
        ("lines", "functions", "file"),
        [(n(row["lines"]), n(row["functions"]), name(row["path"])) for row in first("lines")],
    )
    table(
        console,
        "Most complex functions",
        ("branches", "function", "file"),
        [(n(row["ways"]), row["hardest"].rpartition(".")[2], name(row["path"])) for row in first("ways")],
    )
    table(console, "Most imported", ("files", "module"), [(n(count), each) for each, count in imports.most_common(5)])
    wrong = [(name(path), reason.rpartition(" (")[0] or reason) for path, reason in sorted(ended.failed)]
    if not wrong:
        console.print("[bold]Failed[/]: none, for every source file that came with this Python")
        console.print("parses. It has no test suite, which is where the files with errors are.\n")
        return
    more = f", the first {SHOWN} of {len(wrong)}" if len(wrong) > SHOWN else ""
    table(console, f"Failed: files that do not parse{more}", ("file", "error"), wrong[:SHOWN])


def check(console: Console, files: Sequence[Path], ended: Ended) -> bool:
    """Compare the report with a count made without OnCue; whether they agree."""
    rows = {row["path"]: row["lines"] for row in ended.rows}
    failed = [path for path, _ in ended.failed]
    counted = {str(path): count_lines(path) for path in files if str(path) not in set(failed)}
    facts = [
        (
            len(ended.rows) + len(failed) == len(files),
            f"{n(len(files))} files: {n(len(ended.rows))} measured + {len(failed)} failed",
        ),
        (
            len(rows) == len(ended.rows) and rows.keys() == counted.keys(),
            "each file once, none lost, none invented",
        ),
        (rows == counted, f"{n(sum(rows.values()))} lines, file by file"),
        (not any(parses(path) for path in failed), "none of those that failed parses"),
        (sorted(failed) == sorted(ended.dead), "each of them is a dead letter too, once, as it was"),
    ]
    console.print("[bold]Checked against a direct count[/], made without OnCue\n")
    for good, fact in facts:
        console.print(f"  {'[green]✓[/]' if good else '[red]✗ NOT SO:[/]'} {fact}")
    functions, involved, complexity = (
        sum(row[key] for row in ended.rows) for key in ("functions", "involved", "complexity")
    )
    console.print(
        f"\n  {n(functions)} functions with {n(complexity)} ways through them; {n(involved)} have more than 10."
    )
    return all(good for good, _ in facts)


def source_files(library: Path) -> list[Path]:
    """The library's source files, found without any actor."""
    found = []
    for folder, folders, names in os.walk(library):
        folders[:] = [each for each in folders if each not in {"site-packages", "dist-packages"}]
        found += [Path(folder, each) for each in names if each.endswith(".py")]
    return [path for path in found if path.is_file()]


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def parses(path: str) -> bool:
    try:
        ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return False
    return True


def table(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table; what is made of numbers stands on the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = max(20, console.width - sum(widths[:-1]) - 2 * len(widths[:-1]))
    console.print(f"[bold]{title}[/]")
    for number, row in enumerate([headings, *rows]):
        cells = [
            cell.rjust(width) if rows[0][place].replace(",", "").isdigit() else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row[:-1], widths, strict=False))
        ]
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
        console.print("  ".join([*cells, last]), style=None if number else "dim", markup=False, soft_wrap=True)
    console.print()


def n(number: int) -> str:
    return f"{number:,}"
