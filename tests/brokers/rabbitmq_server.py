"""Real RabbitMQ servers for tests: child processes on free ports, with their data in a temporary folder."""

from __future__ import annotations

import base64
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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from .redis_server import free_port

ENVIRONMENT = "ONCUE_TEST_RABBITMQ_URL"
_START = 60.0
_PROGRAMS = ("/usr/lib/rabbitmq/bin", *os.environ.get("PATH", "").split(os.pathsep))
"""Debian's wrapper in the path changes the user; what it wraps does not."""
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


def program(name: str) -> str:
    """One of the server's programs; skip the test where there is none, and fail it in continuous integration."""
    found = shutil.which(name, path=os.pathsep.join(_PROGRAMS))
    if found is None:
        reason = f"{name} is not installed, and {ENVIRONMENT} names no server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class RabbitMQServer:
    """One server. Its data outlive `stop` and `kill`, so that `start` goes on with them.

    management: whether it has the management plugin, which makes virtual hosts quickly and stopping slow, by five seconds.
    settings: further lines of its configuration file.

    A process beside it ends it, and the daemon that knows the names of its nodes, when this process has ended.
    """

    def __init__(
        self, folder: Path, *, management: bool = True, settings: Mapping[str, str | int] | None = None
    ) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.port, self.management_port, self._distribution, self._names = (free_port() for _ in range(4))
        self._settings = {"loopback_users": "none", **(settings or {})}
        if management:
            self._settings |= {"management.tcp.port": self.management_port, "management.tcp.ip": "127.0.0.1"}
        self._plugins = "rabbitmq_management" if management else ""
        self._node = f"oncue{secrets.token_hex(4)}@localhost"
        self._process: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def vhost(self) -> str:
        """The URL of a new virtual host, without queues."""
        name = secrets.token_hex(6)
        self.request("PUT", f"vhosts/{name}")
        self.request("PUT", f"permissions/{name}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return f"{self.url}{name}"

    def start(self) -> None:
        """Return when it takes connections."""
        if self._daemon is None:
            self._daemon = subprocess.Popen([program("epmd")], env=self._environ, cwd=self.folder)
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [program("rabbitmq-server")], env=self._environ, cwd=self.folder, stdout=output, stderr=output
            )
        self._watch_over(self._process, self._daemon)
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

    def close(self) -> None:
        """End it for good."""
        self.kill()
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait(_START)
        if self._daemon is not None:
            self._daemon.wait(_START)

    def freeze(self) -> None:
        """Return when it does nothing more."""
        os.kill(self.pid, signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")
        while any(_state(thread) not in "Tt" for thread in threads.glob("*/stat")):
            time.sleep(0.001)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """As an orderly restart, but for the machine that it runs in, which takes long to start."""
        self.control("stop_app")
        self.control("start_app")

    def alarm(self, on: bool) -> None:
        """Pretend that memory is short, or is not any more."""
        self.control("set_vm_memory_high_watermark", "0.0000001" if on else "0.4")

    def control(self, *words: str) -> str:
        """Run `rabbitmqctl`, which takes a second or two; what it says."""
        done = subprocess.run(
            [program("rabbitmqctl"), "--quiet", *words],
            check=False,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=_START,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def request(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> Any:
        """Ask the management; the document that it answers with."""
        return request(f"http://guest:guest@127.0.0.1:{self.management_port}", method, path, document)

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def _environ(self) -> dict[str, str]:
        lines = (f"{name} = {value}\n" for name, value in self._settings.items())
        (self.folder / "rabbitmq.conf").write_text("".join(lines))
        (self.folder / "plugins").write_text(f"[{self._plugins}].\n")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return inherited | {
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RUNNING_UNDER_SYSTEMD": "true",  # the shell that starts it becomes it, and hands on no signals
            "HOME": str(self.folder),  # of the cookie
        }

    def _watch_over(self, *processes: subprocess.Popen[bytes]) -> None:
        if self._watch is None:
            words = [sys.executable, "-S", "-E", "-c", _WATCH]
            self._watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        assert self._watch.stdin is not None
        self._watch.stdin.write(" ".join(str(process.pid) for process in processes).encode() + b"\n")
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
            connection.sendall(b"AMQP\0\0\x09\x01")
            return bool(connection.recv(1)) and (not self._plugins or bool(self.request("GET", "overview")))
        return False


def _state(thread: Path) -> str:
    return thread.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]


def request(management: str, method: str, path: str, document: Mapping[str, Any] | None = None) -> Any:
    """Ask the management at a URL with name and password; the document that it answers with."""
    credentials, _, place = management.partition("://")[2].rpartition("@")
    data = None if document is None else json.dumps(document).encode()
    asked = urllib.request.Request(f"http://{place}/api/{path}", data, method=method)
    asked.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def path_of(*names: str) -> str:
    """Names as a path of the management's."""
    return "/".join(quote(name, "") for name in names)


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """A server of this run's own."""
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """A virtual host for this run, on a server of its own, or the one that the environment names."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    server: RabbitMQServer = request.getfixturevalue("rabbitmq_server")
    return server.vhost()
