"""Files stay under 500 lines and functions under 50, unless a reason is written down here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 500
LONGEST_FUNCTION = 50
LONGEST_CONTRACT = 100

LONG_FILES: dict[str, str] = {
    "src/oncue/runtime.py": "one file is mounted into users' containers, and it has to hold all that runs there",
}
"""Path under the root to the reason why it is longer."""

LONG_FUNCTIONS: dict[str, str] = {}
"""`path:function` to the reason why it is longer."""


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring, which may be as long as its promise needs."""
    first = function.body[0]
    doc = ast.get_docstring(function, clean=False) is not None
    skipped = (first.end_lineno or 0) - first.lineno + 1 if doc else 0
    return (function.end_lineno or 0) - function.lineno + 1 - skipped


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short_enough_to_be_read(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length < LONGEST_FILE or name in LONG_FILES, f"{name} has {length} lines"
    long = [
        f"{name}:{function.name} has {lines_of(function)} lines"
        for function in functions(path)
        if lines_of(function) >= LONGEST_FUNCTION and f"{name}:{function.name}" not in LONG_FUNCTIONS
    ]
    assert not long


def test_the_contract_of_transports_fits_on_two_screens() -> None:
    contract = ROOT / "src/oncue/transports/base.py"
    assert len(contract.read_text(encoding="utf-8").splitlines()) < LONGEST_CONTRACT


def test_every_exception_is_still_needed() -> None:
    for name in LONG_FILES:
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) >= LONGEST_FILE, f"{name} is short now"
    for name in LONG_FUNCTIONS:
        path, _, function = name.rpartition(":")
        found = [node for node in functions(ROOT / path) if node.name == function]
        assert any(lines_of(node) >= LONGEST_FUNCTION for node in found), f"{name} is short now"
