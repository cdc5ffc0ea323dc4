"""Real Kafka servers for tests: child processes on free ports, with their data in a temporary folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from .redis_server import free_port

ENVIRONMENT = "ONCUE_TEST_KAFKA_URL"
_JARS = Path(__file__).parents[2] / ".servers" / "kafka"
_START = 60.0
_CLUSTER = "b25jdWUtdGVzdHMtMDAwMQ"
_VERSIONS = b"\x00\x00\x00\x0f\x00\x12\x00\x00\x00\x00\x00\x01\x00\x05tests"
"""Which versions of its protocol does it speak?"""
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
USER, PASSWORD = "me", "sesame"


class Ports(NamedTuple):
    """Where a server is, how others reach it, and where it says to be found by those who come through a proxy."""

    plain: int
    controller: int
    sasl: int
    tls: int
    proxied: int
    proxy: int


def ready() -> bool:
    """Whether there are Java and the server's archives."""
    return shutil.which("java") is not None and any(_JARS.glob("kafka_*.jar"))


def java() -> str:
    """Java, where there are the server's archives too; else skip the test, and fail it in continuous integration."""
    found = shutil.which("java")
    if found is None or not ready():
        reason = f"there is no Kafka server, and {ENVIRONMENT} names none"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class KafkaServer:
    """One server. Its data outlive `stop` and `kill`, so that `start` goes on with them.

    settings: further lines of its configuration file.
    doors: whether it also has listeners with passwords, with TLS, and for those who come through a proxy.

    A process beside it ends it when this process has ended.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node: int = 1,
        settings: Mapping[str, str | int] | None = None,
        doors: bool = False,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.node = node
        self.ports = Ports(*(free_port() for _ in Ports._fields))
        self.settings = dict(settings or {})
        self._doors = doors
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self.ports.plain

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}?partitions=4"

    @property
    def certificate(self) -> Path:
        """Of its listener with TLS, which is its own authority; without openssl there is neither."""
        return self.folder / "certificate.pem"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it takes connections."""
        if not (self.folder / "data").exists():
            if self._doors and shutil.which("openssl"):
                self._make_certificate()
            users = [f"SCRAM-SHA-{size}=[name={USER},password={PASSWORD}]" for size in (256, 512)]
            words = [word for user in users for word in ("--add-scram", user)]
            self._run("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", self._configuration(), *words).wait(
                _START
            )
        self._process = self._run("kafka.Kafka", self._configuration())
        self._watch_over(self._process)
        until = time.monotonic() + _START
        while not self._answers():
            running = self._process.poll() is None
            log = (self.folder / "server.log").read_text()
            assert running and time.monotonic() < until, f"the server did not start:\n{log[-2000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        """As an orderly restart ends it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.kill()
        self.start()

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

    def _configuration(self) -> str:
        settings: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": f"{self.node}@127.0.0.1:{self.ports.controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.ports.controller}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.folder / "data"),
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 500,
            "broker.heartbeat.interval.ms": 300,
            "broker.session.timeout.ms": 2500,  # for so long one that was killed cannot begin anew
            **(self._more_listeners() if self._doors else {}),
            **self.settings,
        }
        path = self.folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return str(path)

    def _more_listeners(self) -> dict[str, str | int]:
        ports = self.ports
        places = {
            "PLAINTEXT": ports.plain,
            "PROXIED": ports.proxied,
            "SASL_PLAINTEXT": ports.sasl,
            **({"SSL": ports.tls} if self.certificate.exists() else {}),
        }
        shown = {**places, "PROXIED": ports.proxy}
        kinds = {**{name: name for name in places}, "PROXIED": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        login = "org.apache.kafka.common.security"
        return {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in places.items())
            + f",CONTROLLER://127.0.0.1:{ports.controller}",
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in shown.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in kinds.items()),
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required "
            f'user_{USER}="{PASSWORD}";',
            "listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "keystore.pem"),
        }

    def _make_certificate(self) -> None:
        key = self.folder / "key.pem"
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {self.certificate}"
        subprocess.run(
            shlex.split(f"{command} -addext subjectAltName=DNS:localhost,IP:127.0.0.1"), check=True, capture_output=True
        )
        (self.folder / "keystore.pem").write_text(key.read_text() + self.certificate.read_text())

    def _run(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        command = [
            *(java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
            *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{_JARS}/*", program, *words),
        ]
        with (self.folder / "server.log").open("ab") as output:
            return subprocess.Popen(command, cwd=self.folder, stdout=output, stderr=output)

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
            connection.sendall(_VERSIONS)
            return bool(connection.recv(1))
        return False


class KafkaCluster:
    """Several servers that are one: each knows all messages, and two of three may decide."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        settings: dict[str, str | int] = {
            "offsets.topic.replication.factor": count,
            "offsets.topic.min.insync.replicas": count - 1,
            "transaction.state.log.replication.factor": count,
            "replica.lag.time.max.ms": 3000,
        }
        self.servers = [KafkaServer(folder / str(node), node=node, settings=settings) for node in range(1, count + 1)]
        voters = ",".join(f"{each.node}@127.0.0.1:{each.ports.controller}" for each in self.servers)
        settings["controller.quorum.voters"] = voters
        for each in self.servers:
            each.settings.update(settings)

    @property
    def url(self) -> str:
        return f"kafka://{','.join(f'127.0.0.1:{each.port}' for each in self.servers)}?partitions=4"

    def start(self) -> None:
        """All at once: none answers before most are there."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(KafkaServer.start, self.servers))

    def close(self) -> None:
        for each in self.servers:
            each.close()


def _state(thread: Path) -> str:
    return thread.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A server of this process's own."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), doors=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def other_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """One more, with few topics: the more there are, the longer it takes to begin anew after it was killed."""
    server = KafkaServer(tmp_path_factory.mktemp("mortal"), doors=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def mortal_kafka(other_kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A server that may be stopped, killed and frozen: it is there again afterwards."""
    yield other_kafka
    if other_kafka.is_running:
        other_kafka.thaw()
    else:
        other_kafka.start()


@pytest.fixture(scope="session")
def kafka_url(request: pytest.FixtureRequest) -> str:
    """A server of this process's own, with groups that notice soon what becomes of their members, or the one that is named."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    server: KafkaServer = request.getfixturevalue("kafka_server")
    return f"{server.url}&session=4"
