"""Real servers that speak the protocol of SQS, for tests: child processes on free ports, data in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .redis_server import free_port

ENVIRONMENT = "ONCUE_TEST_SQS_URL"
SIZE = 262_144
"""Bytes of a message that ElasticMQ takes at most."""
_START = 60.0
_JARS = Path(__file__).parents[2] / ".servers" / "elasticmq"
_WATCH = """
import os, signal, sys
pids = []
while line := sys.stdin.readline():
    pids = line.split()
for pid in pids:
    try:
        os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


def ready() -> bool:
    """Whether the server can run here."""
    return shutil.which("java") is not None and any(_JARS.glob("elasticmq-server*.jar"))


def java() -> str:
    """The program; skip the test where the server cannot run, and fail it in continuous integration."""
    found = shutil.which("java")
    if found is None or not ready():
        reason = f"there is no java or no {_JARS}, and {ENVIRONMENT} names no server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class SQSServer:
    """An ElasticMQ. Its messages outlive `stop` and `kill` where they are `kept`, so that `start` goes on with them.

    A process beside it ends it when this process has ended.
    """

    def __init__(self, folder: Path, *, kept: bool = True) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._kept = kept
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"sqs://key:secret@eu-west-1?endpoint={self.endpoint}&size={SIZE}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it takes requests."""
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(self._command(), stdout=output, stderr=output, cwd=self.folder)
        self._watch_over(self._process.pid)
        until = time.monotonic() + _START
        while not self._answers():
            running = self._process.poll() is None
            assert running and time.monotonic() < until, f"the server did not start:\n{log.read_text()[-2000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        """As an orderly restart ends it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good."""
        self.kill()
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait(_START)

    def _command(self) -> list[str]:
        settings = self.folder / "elasticmq.conf"
        kept = str(self._kept).lower()
        settings.write_text(
            'include classpath("application.conf")\n'
            f'node-address {{ protocol = http, host = "127.0.0.1", port = {self.port}, context-path = "" }}\n'
            f'rest-sqs {{ enabled = true, bind-port = {self.port}, bind-hostname = "127.0.0.1", sqs-limits = strict }}\n'
            "rest-stats { enabled = false }\ngenerate-node-address = false\n"
            f'queues-storage {{ enabled = {kept}, path = "{self.folder}/queues.conf" }}\n'
            f'messages-storage {{ enabled = {kept}, uri = "jdbc:h2:{self.folder}/messages;WRITE_DELAY=0" }}\n'
        )
        words = [java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Dconfig.file={settings}"]
        return [*words, "-cp", f"{_JARS}/*", "org.elasticmq.server.Main"]

    def _watch_over(self, pid: int) -> None:
        if self._watch is None:
            words = [sys.executable, "-S", "-E", "-c", _WATCH]
            self._watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{pid}\n".encode())
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
            connection.sendall(b"GET /?Action=ListQueues HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(12).startswith(b"HTTP/1.1")
        return False


class MotoServer(SQSServer):
    """Moto, in Python alone; it keeps nothing."""

    @property
    def url(self) -> str:
        return f"sqs://key:secret@eu-west-1?endpoint={self.endpoint}"

    def _command(self) -> list[str]:
        words = [sys.executable, "-W", "ignore", "-m", "moto.server"]
        return [*words, "-H", "127.0.0.1", "-p", str(self.port)]


@pytest.fixture(scope="session")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """A server of this run's own."""
    java()
    server = SQSServer(tmp_path_factory.mktemp("sqs"), kept=False)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    server = MotoServer(tmp_path_factory.mktemp("moto"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def sqs_url(request: pytest.FixtureRequest) -> str:
    """The server that the environment names, or one of this run's own."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    server: SQSServer = request.getfixturevalue("sqs_server")
    return server.url
