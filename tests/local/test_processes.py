"""A process that is kept running: again when it dies, its lines, its end, and its end with ours."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvloop
from local.upping import alive, eventually
from runtime.beside import OLDEST, PYTHONS

from oncue.core.message import Message, Send
from oncue.local.launch import runtime_words
from oncue.local.lines import Prefixed
from oncue.local.processes import Kept, surroundings
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec
from oncue.transports.sqlite import forks


class Lines:
    """Keeps lines, and lets a test wait for one."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.came = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.all.append(line)
        self.came.set()

    async def said(self, text: str, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while sum(text in line for line in self.all) < times:
                self.came.clear()
                await self.came.wait()


def kept(program: str, lines: Lines, **more: Any) -> Kept:
    return Kept(
        "p", [sys.executable, "-c", program], environment=dict(os.environ), folder=Path.cwd(), lines=lines, **more
    )


async def test_a_process_that_dies_starts_again_and_the_reason_is_known() -> None:
    lines = Lines()
    process = kept("print('up', flush=True); raise SystemExit(3)", lines)
    running = asyncio.create_task(process.run())
    await lines.said("up", 3)
    assert process.error == "exit code 3"
    process.end()
    await running


async def test_a_program_that_is_not_there_is_tried_again_too() -> None:
    process = Kept("p", ["/no/such/python"], environment={}, folder=Path.cwd(), lines=print)
    running = asyncio.create_task(process.run())
    async with asyncio.timeout(10):
        while not process.error:
            await asyncio.sleep(0)
    assert process.error == "cannot be started: No such file or directory"
    process.end()
    await running


async def test_it_ends_in_order_when_told_to() -> None:
    lines = Lines()
    process = kept("import signal; print('up', flush=True); signal.sigwait([signal.SIGTERM])", lines)
    running = asyncio.create_task(process.run())
    await lines.said("up")
    process.end()
    process.end()
    await running
    assert process.pid is None


async def test_it_is_killed_when_it_does_not_end_in_time() -> None:
    lines = Lines()
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    process = kept(program, lines, patience=0.1)
    running = asyncio.create_task(process.run())
    await lines.said("up")
    pid = process.pid
    assert pid is not None
    process.end()
    await running
    assert not alive(pid)


async def test_cancelling_kills_it() -> None:
    lines = Lines()
    process = kept("import time; print('up', flush=True); time.sleep(99)", lines)
    running = asyncio.create_task(process.run())
    await lines.said("up")
    pid = process.pid
    assert pid is not None
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not alive(pid)


async def test_lines_come_whole_whatever_they_contain() -> None:
    lines = Lines()
    long = 200_000
    process = kept(f"import sys; sys.stdout.buffer.write(b'a\\xff\\nb\\n' + b'x' * {long} + b'\\nend\\nlast'); sys.stdout.flush(); input()", lines)  # fmt: skip
    running = asyncio.create_task(process.run())
    await lines.said("end")
    assert lines.all[:2] == ["a\N{REPLACEMENT CHARACTER}", "b"]
    process.end()
    await running
    assert sum(line.count("x") for line in lines.all) == long
    assert lines.all[-1] == "last"


async def start_while_the_file_is_busy(path: Path) -> float:
    """How many seconds it takes to start a process while our writer waits for another connection."""
    transport = await open_transport(f"sqlite:///{path}")
    try:
        await transport.declare(QueueSpec(name="q"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            sending = asyncio.create_task(transport.send(Send("q", Message(b"{}", "1"))))
            while not any(each.turn.locked() for each in forks._open):
                await asyncio.sleep(0)
            lines = Lines()
            process = kept("print('up', flush=True); input()", lines)
            began = time.monotonic()
            running = asyncio.create_task(process.run())
            await lines.said("up")
            took = time.monotonic() - began
            assert not sending.done()
            other.execute("COMMIT")
            await sending
        process.end()
        await running
    finally:
        await transport.close()
    return took


def test_starting_one_waits_for_no_file_that_another_program_keeps_busy(folder: Path) -> None:
    with asyncio.Runner(
        loop_factory=uvloop.new_event_loop
    ) as runner:  # as `oncue up` runs, in a loop that forks by itself
        assert runner.run(start_while_the_file_is_busy(folder / "q.db")) < 2.0


def test_our_settings_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_URL", "x")
    monkeypatch.setenv("ASYA_HANDLER", "x")
    monkeypatch.setenv("HOUSE", "x")
    found = surroundings({"ASYA_HANDLER": "mine"})
    assert (found.get("ONCUE_URL"), found["ASYA_HANDLER"], found["HOUSE"]) == (None, "mine", "x")


STARTS = """
import os, subprocess, sys
from oncue.local.launch import runtime_words
words = runtime_words(sys.argv[1], "a/1", kernel=sys.argv[2] == "kernel")
child = subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, "ASYA_HANDLER": "json.dumps", "ASYA_SOCKET_DIR": sys.argv[3]}, stderr=subprocess.PIPE, text=True)
for line in child.stderr:
    if "ready at" in line:
        print(child.pid, flush=True)
        break
sys.stdin.read()
"""


@pytest.mark.parametrize("tie", ["kernel", "pipe"])
@pytest.mark.parametrize("python", [sys.executable, OLDEST], ids=["ours", "oldest"])
def test_a_runtime_ends_with_whoever_started_it(python: str, tie: str, folder: Path) -> None:
    command = [sys.executable, "-c", STARTS, str(python), tie, str(folder / "s")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        runtime = int(parent.stdout.readline())
        found = subprocess.run(["pgrep", "-P", str(runtime)], capture_output=True, text=True, check=False).stdout
        family = [runtime, *map(int, found.split())]
        assert len(family) == (2 if tie == "kernel" else 3)
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not any(map(alive, family)), within=10.0)


def test_a_runtime_shows_its_actor_in_the_list_of_processes() -> None:
    assert runtime_words("python3", "resize/1")[-1] == "resize/1"
    assert PYTHONS


def test_lines_stand_behind_their_actors_name_and_cannot_forge_another(capsys: pytest.CaptureFixture[str]) -> None:
    prefixed = Prefixed(["a", "longer"], coloured=False)
    prefixed.of("a", 1)("hello\rlonger/1 | \x1b[31mbye\tnow")
    prefixed.of("longer", 12)("2026-01-01 10:00:00,000 - mine - WARNING - careful")
    prefixed.of("longer", 12)("2026-01-01 10:00:00,000 - oncue.runtime - DEBUG - not for people")
    assert capsys.readouterr().err == (
        "a/1      | hello\\x0dlonger/1 | \\x1b[31mbye\tnow\n"
        "longer/12 | 2026-01-01 10:00:00,000 - mine - WARNING - careful\n"
    )  # fmt: skip
