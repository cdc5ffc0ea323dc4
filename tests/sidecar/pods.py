"""A pod as a test sees it: a runtime and a sidecar as processes, and what is in the queues."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from commandline import WORDS
from programs import environment
from workers import Worker

from oncue.core.errors import QueueMismatchError
from oncue.core.message import Message, Send
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Transport

HERE = Path(__file__).parent
USERS = HERE / "users"
OURS = Path(__file__).parents[2] / "src/oncue/runtime.py"
ASYAS = HERE / "asya_runtime.py"
WITHIN = 30.0


class Pod:
    """One replica: its folder, its runtime and its sidecar. Times are generous, as the machine may be busy."""

    def __init__(self, url: str, actor: str, handler: str, *, runtime: Path = OURS, **settings: str) -> None:
        self.url = url
        self.actor = actor
        self.folder = Path(tempfile.mkdtemp(prefix="oncue-"))
        self._program = runtime
        self._environment = environment(
            ASYA_SOCKET_DIR=str(self.folder),
            ASYA_ACTOR_NAME=actor,
            ASYA_HANDLER=handler,
            ASYA_METRICS_ADDR="127.0.0.1:0",
            PYTHONPATH=str(USERS),
            **({"ONCUE_URL": url} | settings),
        )
        self.address = ""
        self._children: list[subprocess.Popen[bytes]] = []
        self.runtime: subprocess.Popen[bytes]
        self.sidecar: Worker

    def start_runtime(self, **settings: str) -> None:
        environ = {**self._environment, **settings}
        self.runtime = self._begin([sys.executable, str(self._program)], env=environ, stderr=subprocess.DEVNULL)

    def start_sidecar(self, *words: str, ready: bool = True, program: Sequence[str] = (*WORDS, "sidecar")) -> Worker:
        child = self._begin([*program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.sidecar = Worker(child)
        if ready:
            try:
                self.address = self.sidecar.log("sidecar.started")["metrics"]
                self.sidecar.log("pump.started")
            except queue.Empty:
                here = sorted(path.name for path in self.folder.iterdir())
                raise AssertionError(
                    f"not started: {self.sidecar.logs} {self.sidecar.errors} {here} {self.runtime.poll()}"
                ) from None
        return self.sidecar

    def start(self) -> Worker:
        self.start_runtime()
        return self.start_sidecar()

    def kill_runtime(self, number: int = signal.SIGKILL) -> None:
        self.runtime.send_signal(number)
        self.runtime.wait(timeout=WITHIN)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        asked = urllib.request.Request(f"http://{self.address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[str, float]:
        lines = [line for line in self.get("/metrics")[1].splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    def end(self) -> None:
        for child in self._children:
            child.kill()
            child.wait(timeout=WITHIN)
            for stream in (child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(list(words), **{"env": self._environment, "cwd": self.folder.parent, **options})
        self._children.append(child)
        return child


@contextmanager
def pod(url: str, actor: str = "a", handler: str = "jobs.work", **settings: Any) -> Iterator[Pod]:
    """A pod that is not started yet; nothing of it is left at the end."""
    found = Pod(url, actor, handler, **settings)
    try:
        yield found
    finally:
        found.end()


@contextmanager
def running(url: str, actor: str = "a", handler: str = "jobs.work", **settings: Any) -> Iterator[Pod]:
    with pod(url, actor, handler, **settings) as found:
        found.start()
        yield found


class Queues:
    """What tests do with the queues themselves."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, actor: str, *bodies: Any) -> None:
        """Put bodies into an actor's queue: bytes as they are, all else as JSON; ids are those of the envelopes."""
        self._run(lambda transport: self._send(transport, actor, bodies))

    def take(self, actor: str, count: int) -> list[Any]:
        """Remove the next `count` messages and return their envelopes; waits for them."""
        return [json.loads(message.body) for message in self.messages(actor, count)]

    def messages(self, actor: str, count: int) -> list[Message]:
        """As `take`, but the messages themselves."""
        return self._run(lambda transport: _take(transport, f"asya-{actor}", count))

    def depth(self, actor: str) -> int:
        async def depth(transport: Transport) -> int:
            found = await transport.depth(f"asya-{actor}")
            return (found.ready or 0) + (found.leased or 0) + (found.delayed or 0)

        return self._run(depth)

    def peek(self, actor: str) -> list[Message]:
        async def peek(transport: Transport) -> list[Message]:
            return list(await transport.peek(f"asya-{actor}", limit=10_000))

        return self._run(peek)

    def make(self, *actors: str) -> None:
        async def make(transport: Transport) -> None:
            for actor in actors:
                await _make(transport, actor)

        self._run(make)

    async def _send(self, transport: Transport, actor: str, bodies: Sequence[Any]) -> None:
        await _make(transport, actor)
        sends = []
        for number, body in enumerate(bodies):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            id = body["id"] if isinstance(body, dict) and isinstance(body.get("id"), str) else f"raw-{number}"
            sends.append(Send(f"asya-{actor}", Message(data, id)))
        await transport.send(*sends)

    def _run(self, work: Callable[[Transport], Any]) -> Any:
        async def run() -> Any:
            transport = await open_transport(self.url)
            try:
                async with asyncio.timeout(WITHIN):
                    return await work(transport)
            finally:
                await transport.close()

        return asyncio.run(run())


async def _make(transport: Transport, actor: str) -> None:
    """Make an actor's queue, unless it is there, in which case its settings are its own."""
    with suppress(QueueMismatchError):
        await transport.declare(QueueSpec(name=f"asya-{actor}"))


async def _take(transport: Transport, queue: str, count: int) -> list[Message]:
    await _make(transport, queue.removeprefix("asya-"))
    found = []
    async with transport.subscribe(queue, prefetch=1) as subscription:
        for _ in range(count):
            lease = await subscription.receive()
            found.append(lease.message)
            await lease.ack()
    return found


def envelope(id: str, payload: Any, actors: Sequence[str] = ("a",), current: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": id, "route": {"actors": list(actors), "current": current}, "payload": payload, **more}


def until(condition: Callable[[], object], within: float = WITHIN) -> None:
    """Wait for what no event tells: another process's answer over HTTP, its end."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def workers_of(pid: int) -> list[int]:
    """The processes that a runtime's parent has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
