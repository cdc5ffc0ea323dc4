"""`oncue up --detach`, `oncue ps` and `oncue down`, and the table on a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import on_terminal
from local.upping import URL, alive, call, eventually, manifest, notes, oncue, send, write

from oncue.local.state import find


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    running = find(Path(".oncue"))
    if running is not None:
        os.kill(running.pid, signal.SIGKILL)


def test_what_was_detached_works_is_listed_and_is_ended() -> None:
    write(manifest("echo", "jobs.echo"))
    started = oncue("up", "--detach")
    assert started.returncode == 0, started.stderr
    running = find(Path(".oncue"))
    assert running is not None
    assert started.stderr == f"Started as process {running.pid}; its log is .oncue/up.log, and oncue down ends it.\n"
    assert call("echo", 1) == 1
    eventually(lambda: json.loads(oncue("ps", "--json").stdout)[0]["done"] == 1)
    listed = oncue("ps")
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["ACTOR", "STATE", "REPLICAS", "READY", "LEASED", "DELAYED", "DEAD", "DONE", "ERRORS", "LAST", "ERROR"]  # fmt: skip
    assert lines[1].split() == ["echo", "running", "1/1", "0", "0", "0", "0", "1", "0"]
    assert [line.split()[0] for line in lines[2:]] == ["happy-end", "error-end"]
    ended = oncue("down")
    assert (ended.returncode, ended.stderr) == (0, "Ended.\n")
    assert not alive(running.pid)
    assert "up.stopped" in Path(".oncue/up.log").read_text(encoding="utf-8")


def test_down_lets_what_has_begun_finish() -> None:
    write(manifest("held", "jobs.held"))
    assert oncue("up", "-d").returncode == 0
    send("held", 1)
    eventually(lambda: len(notes("held")) == 1)
    Path("go").touch()
    assert oncue("down").returncode == 0
    assert notes("done") == ["done 1"]


def test_where_nothing_runs_ps_and_down_say_so() -> None:
    for verb in ("ps", "down"):
        done = oncue(verb)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "Nothing runs in this folder.\n")
    assert oncue("ps", "--json").stdout == "[]\n"


def test_down_kills_what_does_not_end_by_itself() -> None:
    write(manifest("echo", "jobs.echo", grace=0))
    assert oncue("up", "-d", "--grace", "0s").returncode == 0
    running = find(Path(".oncue"))
    assert running is not None
    os.kill(running.pid, signal.SIGSTOP)
    done = oncue("down")
    assert done.returncode == 0
    assert "did not end by itself and was killed" in done.stderr
    assert not alive(running.pid)


def test_a_detached_start_that_fails_says_why() -> None:
    write(manifest("echo", "jobs.echo"))
    Path(".oncue").mkdir()
    Path(".oncue/oncue.db").write_text("this is no store, and nobody should overwrite it " * 20)
    done = oncue("up", "-d")
    assert done.returncode == 1
    assert "nothing was started (see .oncue/up.log)" in done.stderr
    assert "oncue.db" in done.stderr


@contextmanager
def detached(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A detached start that waits for what is not there."""
    command = [sys.executable, "-m", "oncue", *words, "up", "-d"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_detached_start_that_waits_says_what_for_and_is_over_when_it_is_interrupted() -> None:
    write(manifest("echo", "jobs.echo"))
    with detached("--transport", "redis://127.0.0.1:1") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("oncue: still starting: redis://127.0.0.1:1/0: ")
        assert "oncue down ends it" in said
        assert find(Path(".oncue")) is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
    assert find(Path(".oncue")) is None


def test_a_detached_second_start_is_refused() -> None:
    write(manifest("echo", "jobs.echo"))
    assert oncue("up", "-d").returncode == 0
    second = oncue("up", "-d")
    assert second.returncode == 1
    assert "runs already in this folder" in second.stderr


def test_on_a_terminal_there_are_a_table_and_lines_behind_the_names_of_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_URL", URL)
    write(manifest("loud", "jobs.loud"), jobs="def loud(x):\n    print('said', x)\n")
    assert oncue("send", "loud", '"\\u001b[31mred"').returncode == 0
    code, shown = on_terminal("up", typed=b"\x03", until=b"1/1", columns=120)
    assert code == 0, shown
    assert "runs 1 actor on sqlite:///.oncue/oncue.db" in shown
    assert "Without effect here: spec.transport (sqs)." in shown
    assert "REPLICAS" in shown
    assert "\x1b[36mloud/1 |\x1b[0m said \\x1b[31mred" in shown
    assert "Stopped." in shown


def test_colours_are_left_out_where_somebody_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_URL", URL)
    monkeypatch.setenv("NO_COLOR", "1")
    write(manifest("loud", "jobs.loud"), jobs="def loud(x):\n    print('said', x)\n")
    assert oncue("send", "loud", "1").returncode == 0
    code, shown = on_terminal("up", typed=b"\x03", until=b"1/1", columns=120)
    assert code == 0, shown
    assert "loud/1 | said 1" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)
