"""Workers as real processes, whose logs and prints a test can wait for."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commandline import WORDS

APP = """\
import asyncio, json, os
from oncue import App

app = App()

def say(*words):
    os.write(1, " ".join([*words, str(os.getpid())]).encode() + b"\\n")  # in one piece, for several processes share it

def wait(gate):
    with open(gate, "rb", buffering=0) as opened:
        return opened.read(1).decode()

@app.actor
async def greet(name: str) -> str:
    say("greet", name)
    return f"Hello, {name}!"

@app.actor
async def number(what: str):
    return float(what)

@app.actor
async def strange(what: str):
    return object()

@app.actor(retry=__import__("oncue").Retry(max_attempts=1))
async def fail(text: str):
    raise ValueError(text)

@app.actor(concurrency=1)
async def hold(gate: str) -> str:
    say("holds")
    got = await asyncio.to_thread(wait, gate)
    say("held")
    return got

@app.actor(concurrency=1)
def block(gate: str) -> str:
    say("blocks")
    return wait(gate)

@app.actor
async def hang(gate: str):
    say("hangs")
    wait(gate)

@app.actor(lease=1.0)
def die(code: int):
    say("dies")
    os._exit(code)
"""
"""An app with an actor for each thing that can happen; `gate` is a pipe with a name that the test opens when it likes."""

_WITHIN = 30.0


class Worker:
    """A worker's process. What it prints and logs can be waited for in any order."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.logs: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._gates: list[int] = []
        self._logs: queue.Queue[str | None] = queue.Queue()
        self._prints: queue.Queue[str | None] = queue.Queue()
        assert child.stdout is not None
        assert child.stderr is not None
        self._readers = [
            threading.Thread(target=_copy, args=(child.stdout.fileno(), self._prints), daemon=True),
            threading.Thread(target=_copy, args=(child.stderr.fileno(), self._logs), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def log(self, name: str, **fields: object) -> dict[str, Any]:
        """The next log record of this name with these fields."""
        while True:
            record = self._next_log()
            assert record is not None, f"no {name} in {self.logs} {self.errors}"
            if record["message"] == name and record.items() >= fields.items():
                return record

    def line(self) -> list[str]:
        """The words of the next line that an actor prints."""
        line = self._prints.get(timeout=_WITHIN)
        if line is None:
            code = self.end()
            raise AssertionError(f"it ended with {code} and prints nothing more: {self.errors} {self.logs[-3:]}")
        return line.split()

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def open(self, gate: str) -> None:
        """Let through who waits at the gate, and who comes later."""
        self._gates.append(os.open(gate, os.O_RDWR))
        os.write(self._gates[-1], b"o" * 64)

    def close(self) -> None:
        """Kill the process if it is still there."""
        self.child.kill()
        for gate in self._gates:
            os.close(gate)

    def end(self) -> int:
        """Wait until the process, and every other that holds its output, has ended; its exit code."""
        code = self.child.wait(timeout=_WITHIN)
        while self._next_log() is not None:
            continue
        self._readers[0].join(_WITHIN)
        assert not self._readers[0].is_alive()
        return code

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.end()

    def _next_log(self) -> dict[str, Any] | None:
        while (line := self._logs.get(timeout=_WITHIN)) is not None:
            try:
                record: dict[str, Any] = json.loads(line)
            except ValueError:
                self.errors.append(line)
                continue
            self.logs.append(record)
            return record
        return None


def _copy(source: int, target: queue.Queue[str | None]) -> None:
    """Read lines from an open file; not through a Python file, whose lock would keep a failed test from closing it."""
    rest = b""
    try:
        while piece := os.read(source, 65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                target.put(line.decode())
    except OSError as error:  # the test is over and has closed it
        target.put(f"no more is read: {error}")
    target.put(None)


@contextmanager
def working(*words: str, app: str = APP, target: str = "jobs:app") -> Iterator[Worker]:
    """A worker in the current folder, killed at the end if it is still there."""
    Path("jobs.py").write_text(app, encoding="utf-8")
    with subprocess.Popen([*WORDS, "run", target, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        worker = Worker(child)
        try:
            yield worker
        finally:
            worker.close()


def make_gate() -> str:
    """The name of a gate that is closed: who reads from it waits."""
    os.mkfifo("gate")
    return str(Path("gate").resolve())
