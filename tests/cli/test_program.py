"""The whole of the command line: what it costs to start, and how it says what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from commandline import URL, WORDS, make_queue, process


def line_of(result: Result) -> str:
    """The one line on standard error."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert not result.stdout
    return lines[0]


def test_help_imports_nothing_that_a_verb_needs() -> None:
    code = (
        "import sys, oncue.cli\n"
        "try: oncue.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = 'msgspec asyncio aiohttp rich yaml sqlite3 prometheus_client uvloop oncue.core oncue.transports redis'\n"
        "print([name for name in heavy.split() if name in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == "[]"
    assert "redrive" in shown.stdout


def test_the_version_is_that_of_the_package(run) -> None:
    from oncue import __version__

    assert run("--version").stdout == f"oncue {__version__}\n"


@pytest.mark.parametrize("words", [(), ("queue",), ("dead",), ("result",)])
def test_without_a_verb_there_is_the_help_and_the_code_for_misuse(run, words) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quene"], "oncue: no such command 'quene', did you mean 'queue'? (see oncue --help)"),
        (["queue", "lits"], "oncue: no such command 'lits', did you mean 'list'? (see oncue queue --help)"),
        (["frobnicate"], "oncue: no such command 'frobnicate'; there are run, "),
        (["queue", "list", "--jsn"], "oncue: no such option '--jsn'"),
        (["queue", "peek"], "oncue: missing argument 'NAME' (see oncue queue peek --help)"),
        (["queue", "peek", "x", "--limit", "0"], "oncue: invalid value for '--limit': 0 is not in the range"),
        (["send", "x", "--delay", "soon"], "oncue: invalid value for '--delay': 'soon' is not a duration: expected seconds"),
        (["--transport", "redsi://h", "queue", "list"], "oncue: transport redsi: is an unknown scheme (did you mean 'redis'?)"),
        (["--transport", "jobs.db", "queue", "list"], "oncue: command line: --transport is 'jobs.db', expected a URL such as"),
        (["--transport", "memory:", "queue", "list"], "oncue: transport memory:: its queues live and end with one process"),
        (["queue", "create", "two words"], "oncue: queue name 'two words': expected 1 to 128 letters"),
    ],
)  # fmt: skip
def test_what_is_called_wrongly_gets_one_line_and_code_2(run, words: list[str], expected: str) -> None:
    result = run(*words)
    assert line_of(result).startswith(expected)
    assert result.exit_code == 2


def test_every_unknown_setting_is_named_with_its_place(run, folder: Path) -> None:
    (folder / "oncue.yaml").write_text("prefx: a-\ngrace: soon\n")
    result = run("queue", "list")
    assert result.stderr.splitlines() == [
        "oncue: oncue.yaml:1: unknown setting 'prefx', did you mean 'prefix'?",
        "oncue: oncue.yaml:2: grace is 'soon', expected seconds, or a text like 250ms, 90s, 5m, 1h30m or 7d",
    ]
    assert result.exit_code == 2


def test_a_settings_file_that_was_asked_for_must_be_there(run) -> None:
    result = run("--config", "nowhere.yaml", "queue", "list")
    assert line_of(result) == "oncue: nowhere.yaml: cannot be read: No such file or directory"
    assert result.exit_code == 2


def test_global_options_may_stand_before_and_after_the_verb(run) -> None:
    make_queue("asya-greet")
    assert run("--transport", URL, "queue", "list").exit_code == 0
    assert run("queue", "list", "--transport", URL).exit_code == 0
    other = run("queue", "list", "--transport", "sqlite:///other.db")
    assert line_of(other).startswith("oncue: there is no store at")
    assert other.exit_code == 1


def test_looking_into_a_store_that_is_not_there_makes_none(run, folder: Path) -> None:
    for words in (["queue", "list"], ["dead", "list"], ["queue", "peek", "x"], ["dead", "redrive", "x"]):
        assert run(*words).exit_code == 1
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(run, folder: Path) -> None:
    make_queue("asya-greet")
    (folder / "jobs.db").chmod(0)
    assert "may not be read" in line_of(run("queue", "list"))


def test_a_file_that_is_no_store_is_named(run, folder: Path) -> None:
    (folder / "jobs.db").write_bytes(b"these are no queues" * 100)
    result = run("queue", "list")
    assert line_of(result).startswith(f"oncue: {folder}/jobs.db: ")
    assert result.exit_code == 1


def test_a_stack_trace_is_shown_with_v_alone(run, folder: Path) -> None:
    (folder / "jobs.db").write_bytes(b"these are no queues" * 100)
    assert "Traceback" not in run("queue", "list").stderr
    verbose = run("-v", "queue", "list").stderr
    assert "Traceback (most recent call last)" in verbose
    assert verbose.splitlines()[-1].startswith("oncue: ")


def test_a_reader_that_leaves_gets_no_complaint() -> None:
    make_queue("asya-greet", 2000)
    words = [*WORDS, "queue", "peek", "greet", "--limit", "2000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 128 + signal.SIGPIPE


def test_closed_standard_streams_are_no_reason_to_fail() -> None:
    make_queue("asya-greet", 1)
    command = f"exec {sys.executable} -P -m oncue queue list <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=30).returncode == 0


def test_ctrl_c_ends_with_130_and_one_line() -> None:
    with subprocess.Popen([*WORDS, "send", "greet", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        first = child.stderr.readline()  # it has begun to read
        assert b"made the queue" in first
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read().decode().splitlines()
    assert rest == ["oncue: interrupted"]
    assert child.returncode == 130


def test_python_m_oncue_is_the_same() -> None:
    assert process("--version").stdout.startswith(b"oncue ")
