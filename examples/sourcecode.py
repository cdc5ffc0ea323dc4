"""The app behind demo.py: three actors list, measure and summarise Python source files.

    list_files  a folder in, the paths of its source files out, one message each
    measure     a path in, what is in the file out; a file that does not parse is a dead letter
    summarise   a measurement in, one row of the report's table

The worst that can happen to a message is to be handled twice. `measure` only reads, and `summarise` replaces the row of the
same file, so nothing is counted twice.
"""

import ast
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from oncue import App, Context, Retry

app = App()  # the queues are where ONCUE_URL says

NOT_THE_LIBRARY = {"site-packages", "dist-packages"}
"""Folders inside of the standard library that belong to other packages."""

BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Measurement:
    path: str
    lines: int
    functions: int
    complexity: int  # of all functions together
    hardest: str  # the function with the most ways through it, and how many it has
    ways: int
    imports: list[str]
    attempt: int  # which attempt at this file it was


@app.actor
def list_files(folder: str) -> Iterator[str]:
    for path in sorted(Path(folder).rglob("*.py")):
        if path.is_file() and not NOT_THE_LIBRARY & set(path.parts):
            yield str(path)


# lease: what a killed worker had in its hands comes back after at most 5 seconds. concurrency: parsing keeps a processor core
# busy, so more than two files at once would only wait for each other; for more cores there are more worker processes.
@app.actor(lease=5, concurrency=2, retry=Retry(never=[SyntaxError, ValueError]))
def measure(path: str, context: Context) -> Measurement:
    source = Path(path).read_bytes()
    functions, imports = survey(ast.parse(source, filename=path))
    hardest, ways = max(functions.items(), key=lambda item: item[1], default=("", 0))
    return Measurement(
        path=path,
        lines=source.count(b"\n") + (not source.endswith(b"\n") and source != b""),
        functions=len(functions),
        complexity=functions.total(),
        hardest=hardest.rpartition(":")[0],
        ways=ways,
        imports=sorted(imports),
        attempt=context.attempt,
    )


@app.actor(lease=5, concurrency=4)
def summarise(measurement: Measurement) -> None:
    row = {**asdict(measurement), "imports": " ".join(measurement.imports)}
    with open_report() as report:
        report.execute(
            "INSERT OR REPLACE INTO files VALUES "
            "(:path, :lines, :functions, :complexity, :hardest, :ways, :imports, :attempt)",
            row,
        )


def survey(tree: ast.AST) -> tuple[Counter[str], set[str]]:
    """The cyclomatic complexity of each function, 1 and one more for each branch in it, and the modules imported."""
    functions: Counter[str] = Counter()
    imports: set[str] = set()
    to_visit: list[tuple[ast.AST, str, str]] = [(tree, "", "")]  # a node, what it is part of, and in which function
    while to_visit:
        node, name, function = to_visit.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            name = f"{name}.{node.name}".lstrip(".")
        if isinstance(node, FUNCTIONS):
            function = f"{name}:{node.lineno}"
            functions[function] = 1
        elif function:
            functions[function] += branches(node)
        if isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
        to_visit += [(child, name, function) for child in ast.iter_child_nodes(node)]
    return functions, imports


def branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, BRANCHES))


def make_report() -> None:
    """Make the table that `summarise` fills, in the file that DEMO_REPORT names."""
    with open_report() as report:
        report.execute("PRAGMA journal_mode=WAL")
        report.execute(
            "CREATE TABLE files (path TEXT PRIMARY KEY, lines INTEGER, functions INTEGER, complexity INTEGER, "
            "hardest TEXT, ways INTEGER, imports TEXT, attempt INTEGER)"
        )


@contextmanager
def open_report() -> Iterator[sqlite3.Connection]:
    """A connection of one's own, for connections do not like to be shared by threads; each statement is a transaction."""
    with closing(sqlite3.connect(os.environ["DEMO_REPORT"], timeout=30, isolation_level=None)) as report:
        yield report
