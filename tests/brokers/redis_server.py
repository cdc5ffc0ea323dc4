"""Real Redis servers for tests: child processes on free ports, with their data in a temporary folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ENVIRONMENT = "ONCUE_TEST_REDIS_URL"
_START = 20.0
_PORTS = range(12_000, 22_000)


def free_port() -> int:
    """A port that was free a moment ago, and that no outgoing connection is given: a server may take seconds to get to it.

    It leaves room for the nodes of a cluster, which use the one 10,000 above as well.
    """
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def binary() -> str:
    """The server's program; skip the test where there is none, and fail it in continuous integration."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        reason = f"neither redis-server nor valkey-server is installed, and {ENVIRONMENT} names no server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class RedisServer:
    """One server. Its data outlive `stop` and `kill`, so that `start` goes on with them."""

    def __init__(self, folder: Path, *options: str, fsync: str = "everysec") -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._options = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
        self._options += ["--appendfsync", fsync, "--loglevel", "warning", *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it takes commands."""
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(self._command(), stdout=output, stderr=output, cwd=self.folder)
        until = time.monotonic() + _START
        while not self._answers():
            running = self._process.poll() is None
            assert running and time.monotonic() < until, f"the server did not start:\n{log.read_text()[-2000:]}"
            time.sleep(0.005)

    def stop(self) -> None:
        """As an orderly restart ends it: everything is on disk."""
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

    def command(self, *words: str | bytes | int) -> bytes:
        """Ask it something by a connection of its own; the raw answer, which has to fit into one packet."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
            connection.sendall(
                b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
            )
            return connection.recv(65536)

    def _command(self) -> list[str]:
        return [binary(), "--port", str(self.port), *self._options]

    def _end(self, number: int) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
                self._process.send_signal(signal.SIGCONT)
            self._process.wait(_START)
            self._process = None

    def _answers(self) -> bool:
        try:
            # NOAUTH and the refusal of a plain connection are answers, too; LOADING says that it is not ready.
            return not self.command("PING").startswith(b"-LOADING")
        except OSError:
            return False


class Sentinel(RedisServer):
    """Watches over a primary under the name `main`, and makes a replica of it the next one when it is gone."""

    def __init__(self, folder: Path, primary: RedisServer) -> None:
        super().__init__(folder)
        self._primary = primary

    def _command(self) -> list[str]:
        settings = self.folder / "sentinel.conf"
        if not settings.exists():
            settings.write_text(
                f"port {self.port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {self._primary.port} 1\n"
                "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
            )
        return [binary(), str(settings), "--sentinel"]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this run's own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The server that the environment names, or one of this run's own."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url
