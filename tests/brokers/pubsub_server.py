"""Google's emulator of Pub/Sub, for tests: a child process on a free port. It keeps all in memory.

It comes with the Google Cloud CLI (`gcloud components install pubsub-emulator`) and cannot be fetched from a registry, so where it
is missing the tests are skipped, everywhere, and say so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from .redis_server import free_port

ENVIRONMENT = "ONCUE_TEST_PUBSUB_URL"
THEIRS = "PUBSUB_EMULATOR_HOST"
PROJECT = "oncue-tests"
_START = 60.0
_PROGRAM = Path("platform/pubsub-emulator")
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


def archive() -> Path | None:
    """The emulator of the Google Cloud CLI on this machine."""
    gcloud = shutil.which("gcloud")
    roots = [Path(gcloud).resolve().parents[1]] if gcloud else []
    for root in roots:
        for found in sorted((root / _PROGRAM / "lib").glob("cloud-pubsub-emulator-*-all.jar")):
            return found
    return None


def ready() -> bool:
    """Whether the server can run here."""
    return shutil.which("java") is not None and archive() is not None


def command(port: int, heap: str) -> list[str]:
    """How it is started; skip the test where it cannot be."""
    java, found = shutil.which("java"), archive()
    if java is None or found is None:
        pytest.skip(
            "there is no java or no emulator of the Google Cloud CLI (gcloud components install pubsub-emulator), and neither "
            f"{ENVIRONMENT} nor {THEIRS} names a server"
        )
    flags = f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"
    return [java, *flags, "-jar", str(found), "--host=127.0.0.1", f"--port={port}"]


class PubSubServer:
    """An emulator. A process beside it ends it when this process has ended."""

    def __init__(self, folder: Path, *, heap: str = "768m") -> None:
        self.folder = folder
        self._heap = heap
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"pubsub://{PROJECT}?emulator={self.host}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it takes calls."""
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command(self.port, self._heap), stdout=output, stderr=output, cwd=self.folder
            )
        self._watch_over(self._process.pid)
        until = time.monotonic() + _START
        with grpc.insecure_channel(self.host) as channel:
            answered = grpc.channel_ready_future(channel)
            while not answered.done():
                running = self._process.poll() is None
                assert running and time.monotonic() < until, f"the server did not start:\n{log.read_text()[-2000:]}"
                time.sleep(0.05)
            answered.cancel()

    def kill(self) -> None:
        """Its messages are gone then."""
        if self._process is not None:
            self.thaw()
            self._process.kill()
            self._process.wait(_START)
            self._process = None

    def freeze(self) -> None:
        """Return when all its threads stand still, which takes its time on a busy machine."""
        os.kill(self.pid, signal.SIGSTOP)
        until = time.monotonic() + _START
        while not _stands_still(self.pid) and time.monotonic() < until:
            time.sleep(0.01)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it for good."""
        self.kill()
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait(_START)

    def _watch_over(self, pid: int) -> None:
        if self._watch is None:
            words = [sys.executable, "-S", "-E", "-c", _WATCH]
            self._watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{pid}\n".encode())
        self._watch.stdin.flush()


def _stands_still(pid: int) -> bool:
    asked = ["ps", "-L", "-o", "state=", "-p", str(pid)]
    states = subprocess.run(asked, check=False, capture_output=True, text=True).stdout.split()
    return all(state.startswith("T") for state in states)


@pytest.fixture(scope="session")
def pubsub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSubServer]:
    """A server of this run's own."""
    server = PubSubServer(tmp_path_factory.mktemp("pubsub"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def pubsub_url(request: pytest.FixtureRequest) -> str:
    """A server that is named by a variable, or else one of this run's own."""
    if url := os.environ.get(ENVIRONMENT):
        return url
    if host := os.environ.get(THEIRS):
        return f"pubsub://{PROJECT}?emulator={host}"
    server: PubSubServer = request.getfixturevalue("pubsub_server")
    return server.url
