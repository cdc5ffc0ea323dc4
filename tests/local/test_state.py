"""How processes find each other: one that runs in a folder, one that asks, one that was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oncue.core.errors import ConfigError
from oncue.local.state import HOME, ActorReport, NoAnswer, Running, Taken, answering, ask, claim, ended, find

HOLDS = """
import sys
from pathlib import Path
from oncue.local.state import HOME, claim
with claim(HOME, "sqlite:///x", 1.0, "now") as running:
    print(running.sockets, flush=True)
    sys.stdin.readline()
print("ending", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that runs in the current folder."""
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_what_runs_is_found_and_only_one_can() -> None:
    with holder() as (process, sockets):
        running = find(HOME)
        assert running == Running(process.pid, str(sockets), "sqlite:///x", 1.0, "now")
        with pytest.raises(Taken, match=f"process {process.pid}, since now"), claim(HOME, "", 0.0, ""):
            raise AssertionError
        assert not ended(HOME, 0.0)
        process.communicate("", timeout=10)
        assert ended(HOME, 10.0)
        assert find(HOME) is None
        assert not sockets.exists()


def test_what_is_ending_still_runs_until_its_process_is_gone() -> None:
    with holder() as (process, _):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ending\n"
        with pytest.raises(Taken, match="just starting or ending"):
            find(HOME)
        process.stdin.close()
        assert ended(HOME, 10.0)
        assert find(HOME) is None


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(folder: Path) -> None:
    (folder / ".oncue").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot keep its state in .*\.oncue: File exists"), claim(HOME, "", 0.0, ""):
        raise AssertionError


def test_where_nothing_ever_ran_nothing_is_found() -> None:
    assert find(HOME) is None
    assert not HOME.exists()


def test_what_was_killed_is_not_found_and_its_sockets_are_removed_by_the_next() -> None:
    with holder() as (process, sockets):
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert find(HOME) is None
    assert sockets.exists()
    with holder():
        assert not sockets.exists()


def test_nothing_is_removed_that_is_surely_not_ours(folder: Path) -> None:
    precious = folder / "precious"
    precious.mkdir()
    HOME.mkdir()
    left = f'{{"pid": 1, "sockets": "{precious}", "url": "", "grace": 1, "started": ""}}'
    (HOME / "up.json").write_text(left, encoding="utf-8")
    with holder():
        assert precious.exists()


def test_the_folder_of_sockets_has_a_short_path_and_is_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    with holder() as (_, sockets):
        assert len(os.fsencode(sockets)) < 60
        assert sockets.stat().st_mode & 0o777 == 0o700


async def test_what_runs_answers_how_its_actors_are(folder: Path) -> None:
    report = ActorReport(name="a", state="running", replicas=1, wanted=2, ready=3)
    running = Running(os.getpid(), str(folder), "", 0.0, "")

    async def reports() -> list[ActorReport]:
        return [report]

    async with answering(running, reports):
        assert await asyncio.to_thread(ask, running) == [report]
    with pytest.raises(NoAnswer, match=f"process {os.getpid()} does not answer"):
        await asyncio.to_thread(ask, running)
