"""`make` does not build on an interpreter that it is about to remove."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/find-python"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with nothing but the script, in a folder whose name is no word for a shell."""
    root = tmp_path / "a repository"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "scripts")
    return root


def python_in(folder: Path, name: str = "python3") -> Path:
    """An interpreter in this folder, as a virtual environment has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(sys.executable)
    return folder / name


def find(root: Path, *path: Path | str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    found = {"PATH": os.pathsep.join(map(str, path)), **environ}
    return subprocess.run(
        ["/bin/sh", str(root / "scripts/find-python")], env=found, cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("inside", [".venv/bin", ".venvs/3.11/bin"])
def test_an_environment_of_this_repository_is_left_out(repository: Path, tmp_path: Path, inside: str) -> None:
    python_in(repository / inside)
    outside = python_in(tmp_path / "usual")
    assert find(repository, repository / inside, outside.parent).stdout == f"{outside}\n"
    link = tmp_path / "link"
    link.symlink_to(repository)
    assert find(link, link / inside, outside.parent).stdout == f"{outside}\n"
    assert find(repository, inside, outside.parent, cwd=repository).stdout == f"{outside}\n"


def test_newer_ones_are_liked_better_wherever_they_stand(repository: Path, tmp_path: Path) -> None:
    python_in(repository / ".venv/bin", "python3.13")
    usual, newer = python_in(tmp_path / "usual"), python_in(tmp_path / "newer", "python3.13")
    assert find(repository, repository / ".venv/bin", usual.parent, newer.parent).stdout == f"{newer}\n"


def test_one_that_is_named_is_taken(repository: Path, tmp_path: Path) -> None:
    usual, other = python_in(tmp_path / "usual"), python_in(tmp_path / "other", "python-other")
    assert find(repository, usual.parent, PYTHON=str(other)).stdout == f"{other}\n"
    assert find(repository, usual.parent, other.parent, PYTHON="python-other").stdout == f"{other}\n"


def test_where_there_is_none_it_says_what_to_do(repository: Path, tmp_path: Path) -> None:
    mine = python_in(repository / ".venv/bin")
    for path, named in (((tmp_path,), ""), ((mine.parent,), ""), ((tmp_path,), str(mine))):
        done = find(repository, *path, **({"PYTHON": named} if named else {}))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("No Python 3.11 or newer found")
        assert "make PYTHON=/path/to/python3" in done.stderr
