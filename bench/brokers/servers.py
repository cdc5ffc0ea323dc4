"""A real server of each kind, on ports of its own and with its data in a temporary folder, for the length of a block."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.rounds import ROOT
from bench.tally import MiscountError

PATIENCE = 60.0
"""Seconds that a server may take to start."""
RABBITMQ = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
"""Debian's wrapper changes the user; what it wraps does not."""


class Place(NamedTuple):
    """A URL where nothing is yet, and the process of its server."""

    url: str
    pid: int


Places = Callable[[], AbstractContextManager[Place]]
"""A new one at each call."""


class AbsentError(Exception):
    """The server is not installed; the text says what would be."""


@contextmanager
def redis() -> Iterator[Places]:
    """Servers that write every second to disk, as most people's; each place is a server."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise AbsentError("neither redis-server nor valkey-server is installed")

    @contextmanager
    def place() -> Iterator[Place]:
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
            words = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""]
            words += ["--appendonly", "yes", "--appendfsync", "everysec"]
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
                try:
                    _wait_for(lambda: _answers(port), process)
                    yield Place(f"redis://127.0.0.1:{port}/0", process.pid)
                finally:
                    process.kill()

    yield place


@contextmanager
def rabbitmq() -> Iterator[Places]:
    """One server with its management, as it comes; each place is a virtual host."""
    program = next((found for found in map(shutil.which, RABBITMQ) if found), None)
    if program is None:
        raise AbsentError("rabbitmq-server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="oncue-bench-"))
    port, epmd, management = _free_port(), _free_port(), _free_port()
    environ = _rabbitmq_environ(folder, port, epmd, management)
    log = (folder / "output").open("wb")
    process = subprocess.Popen([program], env=environ, stdout=log, stderr=log, start_new_session=True)
    numbers = itertools.count(1)
    api = f"http://127.0.0.1:{management}/api"

    @contextmanager
    def place() -> Iterator[Place]:
        name = f"bench{next(numbers)}"
        _request("PUT", f"{api}/vhosts/{name}")
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        _request("PUT", f"{api}/permissions/{name}/guest", rights)
        try:
            yield Place(f"amqp://guest:guest@127.0.0.1:{port}/{name}", pid)
        finally:
            _request("DELETE", f"{api}/vhosts/{name}")

    try:
        _wait_for(lambda: _responds(f"{api}/overview"), process)
        pid = int((folder / "pid").read_text("ascii"))
        yield place
    finally:
        _end(process, epmd)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sqs() -> Iterator[Places]:
    """ElasticMQs that keep all in memory, with the limits of Amazon's service; each place is a server."""
    from tests.brokers.sqs_server import SQSServer, ready

    if not ready():
        raise AbsentError("there is no java, or no ElasticMQ in .servers/elasticmq")
    yield _a_server_each(lambda folder: SQSServer(folder, kept=False), "&depth=approximate")


@contextmanager
def nats() -> Iterator[Places]:
    """Servers with JetStream as it comes, which write to disk every two minutes; each place is a server."""
    from tests.brokers.nats_server import NATSServer, found

    if found() is None:
        raise AbsentError("there is no nats-server, neither in .servers/nats nor installed")
    yield _a_server_each(NATSServer)


@contextmanager
def kafka() -> Iterator[Places]:
    """Servers of one node as it comes, which leaves it to the system when to write to disk; each place is a server."""
    from tests.brokers.kafka_server import KafkaServer, ready

    if not ready():
        raise AbsentError("there is no java, or no Kafka in .servers/kafka")
    yield _a_server_each(KafkaServer)


@contextmanager
def pubsub() -> Iterator[Places]:
    """Google's emulators, which keep all in memory; each place is a server."""
    from tests.brokers.pubsub_server import PubSubServer, ready

    if not ready():
        raise AbsentError("there is no java, or no emulator of the Google Cloud CLI")
    yield _a_server_each(PubSubServer)


class _Server(Protocol):
    """One of the tests' own servers."""

    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int: ...
    def start(self) -> None: ...
    def close(self) -> None: ...


def _a_server_each(make: Callable[[Path], _Server], parameters: str = "") -> Places:
    """Places that are servers of their own, with their data in the folder that `make` is given."""

    @contextmanager
    def place() -> Iterator[Place]:
        with tempfile.TemporaryDirectory(prefix="oncue-bench-") as folder:
            server = make(Path(folder))
            try:
                server.start()
                yield Place(server.url + parameters, server.pid)
            finally:
                server.close()

    return place


SERVERS: dict[str, Callable[[], AbstractContextManager[Places]]] = {
    "redis": redis,
    "rabbitmq": rabbitmq,
    "sqs": sqs,
    "nats": nats,
    "kafka": kafka,
    "pubsub": pubsub,
}


def version(broker: str) -> str:
    """What is installed, in its own words; what it costs to ask RabbitMQ is not worth it, its folder tells."""
    if broker == "redis":
        program = shutil.which("redis-server") or shutil.which("valkey-server") or ""
        said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
        return "Redis " + said.partition("v=")[2].partition(" ")[0]
    if broker == "sqs":
        return "ElasticMQ " + next(iter(ROOT.glob(".servers/elasticmq/elasticmq-server*.jar"))).stem.rpartition("-")[2]
    if broker == "nats":
        from tests.brokers import nats_server

        return "NATS " + nats_server.version(nats_server.found() or "")
    if broker == "pubsub":
        from tests.brokers import pubsub_server

        return "Google's emulator of Pub/Sub " + (pubsub_server.archive() or Path("unknown")).stem.split("-")[-2]
    if broker == "kafka":
        return "Kafka " + next(iter(ROOT.glob(".servers/kafka/kafka_*.jar"))).stem.rpartition("-")[2]
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return "RabbitMQ " + (found[-1].name.rpartition("-")[2] if found else "of unknown version")


def _rabbitmq_environ(folder: Path, port: int, epmd: int, management: int) -> dict[str, str]:
    (folder / "plugins").write_text("[rabbitmq_management].\n", encoding="ascii")
    (folder / "settings.conf").write_text(
        f"management.tcp.port = {management}\nmanagement.tcp.ip = 127.0.0.1\nlog.file.level = error\n", encoding="ascii"
    )
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")},
        "RABBITMQ_NODENAME": f"bench{secrets.token_hex(4)}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "settings"),
        "HOME": str(folder),
    }


def _end(process: subprocess.Popen[bytes], epmd: int) -> None:
    """Nothing of it is wanted any more. The shell around the server goes last, because it waits for its child; the daemon
    that knows the names of nodes ends by itself for nobody, and not at all before it has noticed that its node is gone."""
    family = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], check=False, capture_output=True, text=True
    ).stdout.split()
    for child in family:
        os.kill(int(child), signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    until = time.monotonic() + 10
    while _answers(epmd) and time.monotonic() < until:
        subprocess.run(["epmd", "-port", str(epmd), "-kill"], check=False, capture_output=True)
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while not there():
        if process.poll() is not None or time.monotonic() > until:
            raise MiscountError(f"{process.args} did not start")
        time.sleep(0.02)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _responds(url: str) -> bool:
    try:
        _request("GET", url)
    except OSError:
        return False
    return True


def _request(method: str, url: str, body: object = None) -> None:
    request = urllib.request.Request(url, data=json.dumps(body or {}).encode(), method=method)
    request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()
