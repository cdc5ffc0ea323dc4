"""Every numbered example says what its `.out` file shows, as a program of its own in an otherwise empty folder."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import EXAMPLES, environment

NUMBERED = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("program", NUMBERED, ids=lambda path: path.stem)
def test_an_example_prints_what_stands_beside_it(program: Path, tmp_path: Path) -> None:
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = program.with_suffix(".out").read_text(encoding="utf-8")
    checker = doctest.OutputChecker()
    example = doctest.Example(program.name, wanted)
    assert checker.check_output(wanted, done.stdout, doctest.ELLIPSIS), checker.output_difference(
        example, done.stdout, doctest.REPORT_NDIFF
    )
    assert not done.stderr


def test_the_numbers_have_no_gap_and_every_program_is_listed() -> None:
    assert [int(path.name[:2]) for path in NUMBERED] == list(range(1, len(NUMBERED) + 1))
    assert {path.stem for path in EXAMPLES.glob("*.out")} == {path.stem for path in NUMBERED}
    listed = re.findall(r"\]\(([^/]*?\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_every_example_begins_with_what_it_shows() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert re.match(r'"""[A-Z].*[.:]("""|\n)', path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("wrong", ["Hello, Ada!\n", "Hello, ...!\nHello, Eve!\n"])
def test_an_output_that_differs_is_noticed(wrong: str) -> None:
    assert not doctest.OutputChecker().check_output(wrong, "Hello, Ada!\nHello, Grace!\n", doctest.ELLIPSIS)
