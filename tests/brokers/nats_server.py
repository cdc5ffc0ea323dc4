"""Real NATS servers for tests: child processes on free ports, with their data in a temporary folder."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .redis_server import free_port

ENVIRONMENT = "ONCUE_TEST_NATS_URL"
OLD = "ONCUE_TEST_OLD_NATS_SERVER"
"""The program of a server before 2.12, for what is done where the server does not publish by itself what is due."""
_SERVERS = Path(__file__).parents[2] / ".servers"
_FETCHED, _OLD_FETCHED = (_SERVERS / name / "nats-server" for name in ("nats", "nats-old"))
_START = 20.0
_WATCH = """
import os, signal, sys, time
while line := sys.stdin.readline():
    started = line.split()
time.sleep(0.1)
for pid in started:
    try:
        os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


def found() -> str | None:
    """The server's program, if there is one."""
    return str(_FETCHED) if _FETCHED.exists() else shutil.which("nats-server")


def program() -> str:
    """The same; skip the test where there is none, and fail it in continuous integration."""
    program = found()
    if program is None:
        reason = f"there is no nats-server, and {ENVIRONMENT} names no server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def old_program() -> str:
    """One of before 2.12; skip the test where there is none."""
    fetched = str(_OLD_FETCHED) if _OLD_FETCHED.exists() else None
    program = os.environ.get(OLD) or fetched or shutil.which("nats-server")
    if program is not None and tuple(map(int, version(program).split(".")[:2])) < (2, 12):
        return program
    pytest.skip(f"there is no nats-server before 2.12, and {OLD} names none")


def version(program: str) -> str:
    """As it says itself, such as 2.12.1."""
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return said.rpartition("v")[2].strip()


class NATSServer:
    """One server. Its data outlive `stop` and `kill`, so that `start` goes on with them.

    settings: further lines of its configuration file. binary: its program, if not the usual one.
    jetstream: what is in its block for JetStream; None is a server without.

    A process beside it ends it when this process has ended.
    """

    def __init__(
        self,
        folder: Path,
        *settings: str,
        jetstream: str | None = "",
        binary: str | None = None,
        name: str | None = None,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.port, self.monitoring_port = free_port(), free_port()
        self._settings = settings
        self._jetstream = jetstream
        self._binary = binary
        self._name = name or f"oncue-{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitoring(self) -> str:
        return f"http://127.0.0.1:{self.monitoring_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it takes connections, and JetStream is there."""
        self.begin()
        until = time.monotonic() + _START
        while not self._answers():
            assert self._process is not None
            running = self._process.poll() is None
            log = self.folder / "server.log"
            assert running and time.monotonic() < until, f"the server did not start:\n{log.read_text()[-2000:]}"
            time.sleep(0.005)

    def begin(self) -> None:
        """Start it, and do not wait: one of a cluster waits for the others."""
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(self._command(), stdout=output, stderr=output, cwd=self.folder)
        self._watch_over(self._process)

    def stop(self) -> None:
        """As an orderly restart ends it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it for good."""
        self.kill()
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait(_START)

    def freeze(self) -> None:
        """Return when it does nothing more."""
        os.kill(self.pid, signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")
        while any(_state(thread) not in "Tt" for thread in threads.glob("*/stat")):
            time.sleep(0.001)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self, *settings: str) -> None:
        """Have it read a configuration with these settings instead, soon."""
        self._settings = settings
        self._command()
        os.kill(self.pid, signal.SIGHUP)

    def ask(self, path: str) -> Any:
        """The document that the monitoring has there."""
        with urllib.request.urlopen(f"{self.monitoring}/{path}", timeout=5) as answer:
            return json.loads(answer.read())

    def _command(self) -> list[str]:
        lines = [
            f"server_name: {self._name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitoring_port}",
            *self._settings,
        ]
        if self._jetstream is not None:
            lines.append(f'jetstream {{ store_dir: "{self.folder / "data"}"\n{self._jetstream} }}')
        (self.folder / "nats.conf").write_text("\n".join(lines) + "\n")
        return [self._binary or program(), "--config", str(self.folder / "nats.conf")]

    def _watch_over(self, process: subprocess.Popen[bytes]) -> None:
        if self._watch is None:
            words = [sys.executable, "-S", "-E", "-c", _WATCH]
            self._watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{process.pid}\n".encode())
        self._watch.stdin.flush()

    def _end(self, number: int) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
                self._process.send_signal(signal.SIGCONT)
            self._process.wait(_START)
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            return connection.recv(4) == b"INFO"
        return False


def _state(thread: Path) -> str:
    return thread.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NATSServer]:
    """A server of this run's own."""
    server = NATSServer(tmp_path_factory.mktemp("nats"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def nats_url(request: pytest.FixtureRequest) -> str:
    """The server that the environment names, or one of this run's own."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    server: NATSServer = request.getfixturevalue("nats_server")
    return server.url
