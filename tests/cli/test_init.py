"""`oncue init` and `oncue completion`"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import WORDS, process


def test_a_new_project_works_and_its_own_test_passes(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL")
    assert run("init", "new").exit_code == 0
    monkeypatch.chdir(folder / "new")
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], capture_output=True, check=False, timeout=50
    )
    assert b"1 passed" in tested.stdout, tested.stdout
    assert run("send", "greet", '"Ada"').exit_code == 0
    assert (folder / "new" / "jobs.db").exists()


def test_the_project_s_worker_answers_a_call(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL")
    run("init")
    with subprocess.Popen([*WORDS, "run", "jobs:app"], stderr=subprocess.PIPE) as worker:
        try:
            done = process("send", "greet", '"Grace"', "--route", "shout", "--wait", "--timeout", "20s")
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    assert (done.returncode, done.stdout) == (0, b'"HELLO, GRACE!"\n')


def test_a_folder_with_something_in_it_is_refused_and_nothing_written(run, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    result = run("init")
    assert result.exit_code == 2
    assert result.stderr == "oncue: . is not empty: it has notes.txt (--force adds the files that are missing)\n"
    assert [each.name for each in folder.iterdir()] == ["notes.txt"]


def test_with_force_what_is_there_stays_as_it_is(run, folder: Path) -> None:
    (folder / "jobs.py").write_text("mine")
    assert run("init", "--force").exit_code == 0
    assert (folder / "jobs.py").read_text() == "mine"
    assert (folder / "oncue.yaml").exists()


def test_a_folder_that_holds_only_git_and_an_environment_counts_as_empty(run, folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".venv").mkdir()
    assert run("init").exit_code == 0


def test_a_file_is_no_folder(run, folder: Path) -> None:
    (folder / "x").write_text("")
    result = run("init", "x")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_the_shell_accepts(run, folder: Path, shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_ONCUE_COMPLETE" in script
    if shutil.which(shell):
        (folder / "script").write_text(script)
        check = ["--no-execute"] if shell == "fish" else ["-n"]
        assert subprocess.run([shell, *check, "script"], check=False, timeout=30).returncode == 0


def test_completion_of_an_unknown_shell_names_the_known_ones(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    result = run("completion")
    assert result.exit_code == 2
    assert "bash|zsh|fish" in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [("oncue qu", {"queue"}), ("oncue queue p", {"purge", "peek"}), ("oncue dead list --ol", {"--older-than"})],
)
def test_the_shell_is_told_what_may_follow(words: str, expected: set[str]) -> None:
    environment = {
        **os.environ,
        "_ONCUE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(WORDS, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected
