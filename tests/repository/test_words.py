"""What no file of the project holds: work left undone, tests expected to fail, names that say nothing."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Spelt in pieces, so that this file does not hold them itself.
UNDONE = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|x" r"fail)\b")
HOSTS = re.compile(r"py" r"pi\.org|python" r"hosted\.org|index" r"-url|find" r"-links ", re.IGNORECASE)
EMPTY_NAMES = re.compile(r"(Manager|Helper|Utils?|Base)$")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".lock", ".sh", ".txt", ".json", ""}


def files() -> list[Path]:
    """The files that git knows, or would add; all of them where there is no git."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        paths = [ROOT / name for name in names]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for top in ("src", "tests", "docs", "scripts") for path in (ROOT / top).rglob("*")]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


def found(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_nothing_is_left_undone_and_no_test_is_expected_to_fail() -> None:
    assert not found(UNDONE, files())


def test_no_file_names_the_place_that_packages_come_from() -> None:
    assert not found(HOSTS, [path for path in files() if path.name != "lock"])


def test_locked_packages_all_have_hashes() -> None:
    for path in sorted((ROOT / "requirements").glob("*.lock")):
        entries = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8"))
        packages = [entry for entry in entries if "==" in entry.split("\n")[0]]
        assert packages
        assert all("--hash=sha256:" in entry for entry in packages)


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_a_class_is_and_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            assert not EMPTY_NAMES.search(node.name), node.name
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            swallowed = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not (broad and swallowed), f"line {node.lineno}"
