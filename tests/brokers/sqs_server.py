"""Real servers that speak the protocol of SQS, for tests: child processes on free ports, data in a temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from .redis_server import free_port

ENVIRONMENT = "ONCUE_TEST_SQS_URL"
SIZE = 262_144
"""Bytes of a message that ElasticMQ takes at most."""
_START = 60.0
_RESTORED = 10.0
"""Seconds that it gets to know the queues again that it had; one that was made when it was killed may be gone."""
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

_GATE = """
import asyncio, sys

async def main(outer, inner):
    writers, server, lines = set(), None, asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()
        writers.discard(writer)

    async def accept(reader, writer):
        try:
            there, to_server = await asyncio.open_connection('127.0.0.1', inner)
        except OSError:
            writer.transport.abort()
            return
        writers.update((writer, to_server))
        await asyncio.gather(copy(reader, to_server), copy(there, writer))

    while line := (await lines.readline()).strip():
        if line == b'open':
            server = await asyncio.start_server(accept, '127.0.0.1', outer)
        else:
            if line == b'close' and server is not None:
                server.close()
            for writer in list(writers):
                writer.transport.abort()
        print(flush=True)

asyncio.run(main(*map(int, sys.argv[1:])))
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

    It answers before it has read what it keeps, and says meanwhile that there are no such queues. So one that keeps something
    stands behind a gate, which is opened when all is there again. A process beside it ends it when this process has ended.
    """

    def __init__(self, folder: Path, *, kept: bool = True) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._inner = free_port() if kept else self.port
        self._kept = kept
        self._queues: frozenset[str] = frozenset()
        self._process: subprocess.Popen[bytes] | None = None
        self._gate: subprocess.Popen[bytes] | None = None
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
        """Return when it takes requests, and knows what it knew."""
        log = self.folder / "server.log"
        with log.open("ab") as output:
            said = output.tell()
            self._process = subprocess.Popen(self._command(), stdout=output, stderr=output, cwd=self.folder)
        self._watch_over(self._process.pid)
        until = time.monotonic() + _START
        while not self._answers():
            running = self._process.poll() is None
            assert running and time.monotonic() < until, f"the server did not start:\n{log.read_text()[-2000:]}"
            time.sleep(0.05)
        if self._kept:
            until = time.monotonic() + _RESTORED
            while not self._queues <= _restored(log, said) and time.monotonic() < until:
                time.sleep(0.02)
            self._tell_gate("open")

    def stop(self) -> None:
        """As an orderly restart ends it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def cut_off(self) -> None:
        """Break all connections."""
        self._tell_gate("cut")

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good."""
        self._end(signal.SIGKILL)
        for beside in (self._gate, self._watch):
            if beside is not None:
                assert beside.stdin is not None
                beside.stdin.close()
                beside.wait(_START)
                if beside.stdout is not None:
                    beside.stdout.close()

    def _command(self) -> list[str]:
        settings = self.folder / "elasticmq.conf"
        kept = str(self._kept).lower()
        # The database must not end by itself before the server does, which would then confirm what nobody stores.
        database = f"jdbc:h2:{self.folder}/messages;WRITE_DELAY=0;DB_CLOSE_ON_EXIT=FALSE;RETENTION_TIME=0"
        settings.write_text(
            'include classpath("application.conf")\n'
            f'node-address {{ protocol = http, host = "127.0.0.1", port = {self.port}, context-path = "" }}\n'
            f'rest-sqs {{ enabled = true, bind-port = {self._inner}, bind-hostname = "127.0.0.1", sqs-limits = strict }}\n'
            "rest-stats { enabled = false }\ngenerate-node-address = false\n"
            f'messages-storage {{ enabled = {kept}, uri = "{database}" }}\n'
        )
        flags = "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"
        return [java(), *flags, f"-Dconfig.file={settings}", "-cp", f"{_JARS}/*", "org.elasticmq.server.Main"]

    def _watch_over(self, pid: int) -> None:
        if self._watch is None:
            words = [sys.executable, "-S", "-E", "-c", _WATCH]
            self._watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{pid}\n".encode())
        self._watch.stdin.flush()

    def _tell_gate(self, word: str) -> None:
        """Return when it is done."""
        if self._gate is None:
            words = [sys.executable, "-S", "-E", "-c", _GATE, str(self.port), str(self._inner)]
            self._gate = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        assert self._gate.stdin is not None
        assert self._gate.stdout is not None
        self._gate.stdin.write(f"{word}\n".encode())
        assert self._gate.stdout.readline(), "the gate has ended"

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            if self._kept:
                self._queues = self._known()
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
        self._process.wait(_START)
        self._process = None
        if self._gate is not None:
            self._tell_gate("close")

    def _known(self) -> frozenset[str]:
        """The queues that it has, or had when it last could say."""
        with suppress(OSError), urlopen(f"http://127.0.0.1:{self._inner}/?Action=ListQueues", timeout=2) as answer:
            return frozenset(re.findall(r"/([^/<]+)</QueueUrl>", answer.read().decode()))
        return self._queues

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._inner), 5) as connection:
            connection.sendall(b"GET /?Action=ListQueues HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(12).startswith(b"HTTP/1.1")
        return False


def _restored(log: Path, said: int) -> frozenset[str]:
    """The queues of which it has said, since then, that it has read their messages."""
    with log.open("rb") as found:
        found.seek(said)
        return frozenset(re.findall(r"Restored \d+ messages in queue (\S+)", found.read().decode(errors="replace")))


class MotoServer(SQSServer):
    """Moto, in Python alone; it keeps nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, kept=False)

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
def mortal_sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """One that may be stopped, killed, frozen and cut off, if it is started again; its messages are on disk."""
    java()
    server = SQSServer(tmp_path_factory.mktemp("mortal-sqs"))
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
