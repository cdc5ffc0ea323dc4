"""Runs `oncue up` as people do, in a folder of its own, and looks at what becomes of processes and messages."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from programs import environment

from oncue import App
from oncue.local.state import ActorReport, ask, find
from oncue.results import Result, open_results
from oncue.transports import open_transport
from oncue.transports.base import Depth

PATIENCE = 45.0
URL = "sqlite:///.oncue/oncue.db"
WORDS = [sys.executable, "-P", "-m", "oncue"]

JOBS = '''
import os, pathlib, sys, time

def note(text):
    with open("notes", "a") as notes:
        notes.write(f"{text}\\n")

def echo(payload):
    note(f"echo {payload}")
    return payload

def version(payload):
    return 1

def runs_on(payload):
    return list(sys.version_info[:2])

def environ(payload):
    return {name: text for name, text in os.environ.items() if name in payload}

def boom(payload):
    raise ValueError(f"no {payload}")

def fan(payload):
    return [payload, payload + 1, payload + 2]

def big(payload):
    return len(bytearray(payload))

def held(payload):
    """Takes until the file `go` is there."""
    note(f"held {payload} {os.getpid()} {os.getppid()}")
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    note(f"done {payload}")
    return payload

def slow(payload):
    note(f"slow {payload} {os.getpid()} {os.getppid()}")
    time.sleep(0.05)
    return payload
'''


def manifest(name: str, handler: str, *, python: str = "", memory: str = "", scaling: str = "", replicas: int = 1, env: str = "", sidecar: str = "", grace: int = 10) -> str:  # fmt: skip
    """One actor; `scaling` turns it on with these fields."""
    executable = f"    pythonExecutable: {python}\n" if python else ""
    limits = f"            resources: {{limits: {{memory: {memory}}}}}\n" if memory else ""
    scaled = f"  scaling: {{enabled: true, {scaling}}}\n" if scaling else ""
    beside = f"  sidecar: {{env: [{sidecar}]}}\n" if sidecar else ""
    return (
        f"apiVersion: asya.sh/v1alpha1\nkind: AsyncActor\nmetadata: {{name: {name}}}\nspec:\n  transport: sqs\n"
        f"  timeout: {{processing: 30, gracefulShutdown: {grace}}}\n{scaled}{beside}"
        f"  workload:\n    replicas: {replicas}\n{executable}    template:\n      spec:\n        containers:\n"
        f"          - name: asya-runtime\n            env:\n"
        f"              - {{name: ASYA_HANDLER, value: {handler}}}\n{env}{limits}---\n"
    )


class Up:
    """`oncue up` in the current folder. Leaving it ends it with SIGTERM, unless it has ended, and expects nothing to be left."""

    first = "up.started"
    """What it has to say before a test goes on."""

    def __init__(self, *words: str, **environ: str) -> None:
        self._words = words
        self._environ = environ
        self.sockets: Path | None = None

    def __enter__(self) -> Self:
        with Path("up.out").open("wb") as log:
            self.process = subprocess.Popen(
                [*WORDS, "up", *self._words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment(**self._environ), start_new_session=True,
            )  # fmt: skip
        try:
            eventually(lambda: self.first in self.log or self.process.poll() is not None, self.read)
            assert self.process.poll() is None, self.log
            running = find(Path(".oncue"))
            assert running is not None
        except BaseException:
            self.process.kill()
            raise
        self.sockets = Path(running.sockets)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                return
            if self.process.poll() is None:
                assert self.end(signal.SIGTERM) == 0, self.log
            assert self.sockets is None or not self.sockets.exists()
            eventually(lambda: not children_of(self.process.pid), lambda: str(children_of(self.process.pid)))
        finally:
            self.process.kill()
            self.process.wait()

    def end(self, number: signal.Signals) -> int:
        """Send it this signal and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    @property
    def log(self) -> str:
        return self.read()

    def read(self) -> str:
        return Path("up.out").read_text(encoding="utf-8")

    def records(self) -> list[dict[str, Any]]:
        """Its log, line by line."""
        return [json.loads(line) for line in self.log.splitlines()]

    def said(self, text: str, times: int = 1) -> None:
        """Wait until its log has `text` so often."""
        eventually(lambda: self.log.count(text) >= times, self.read)

    def reports(self) -> dict[str, ActorReport]:
        running = find(Path(".oncue"))
        assert running is not None, self.log
        return {each.name: each for each in ask(running)}

    def becomes(self, actor: str, right: Callable[[ActorReport], bool]) -> ActorReport:
        """Wait until the report of an actor is right."""
        eventually(lambda: right(self.reports()[actor]), lambda: f"{self.reports().get(actor)}\n{self.log}")
        return self.reports()[actor]


def eventually(right: Callable[[], bool], shown: Callable[[], str] = str, within: float = PATIENCE) -> None:
    """Wait for what no event tells of: a process or a file of another program."""
    limit = time.monotonic() + within
    while not right():
        assert time.monotonic() < limit, shown()
        time.sleep(0.02)


def children_of(pid: int) -> Sequence[str]:
    """The command lines of what the supervisor with this pid has started and that still runs."""
    found = subprocess.run(["pgrep", "-af", f"tied.py {pid} "], capture_output=True, text=True, check=False).stdout
    return [line for line in found.splitlines() if "pgrep" not in line]


def runtimes(pid: int) -> list[int]:
    """The runtimes that the supervisor with this pid has started, without their workers."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(each) for each in found.split()]


def notes(start: str = "") -> list[str]:
    """What handlers noted, of those notes that begin so."""
    path = Path("notes")
    return [line for line in path.read_text().splitlines() if line.startswith(start)] if path.exists() else []


def write(*manifests: str, jobs: str = JOBS) -> None:
    """The handlers and manifests of the current folder."""
    Path("jobs.py").write_text(jobs, encoding="utf-8")
    Path("actors.yaml").write_text("".join(manifests), encoding="utf-8")


def call(actor: str, payload: Any, *, route: Sequence[str] = (), url: str = URL) -> Any:
    """The result of a route, or the failure it ended in, raised."""

    async def go() -> Any:
        async with App(url) as app:
            return await app.call(actor, payload, route=route, timeout=PATIENCE)

    return asyncio.run(go())


def send(actor: str, *payloads: Any) -> list[str]:
    """The ids of these messages."""

    async def go() -> list[str]:
        async with App(URL) as app:
            return await app.send_many(actor, payloads)

    return asyncio.run(go())


def results() -> list[Result]:
    """Everything that ended so far."""

    async def go() -> list[Result]:
        store = open_results(URL)
        try:
            return list(await store.list(limit=10_000))
        finally:
            await store.close()

    return asyncio.run(go())


def depth(queue: str) -> Depth:
    async def go() -> Depth:
        transport = await open_transport(URL)
        try:
            return await transport.depth(queue)
        finally:
            await transport.close()

    return asyncio.run(go())


def oncue(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Another command in the same folder."""
    return subprocess.run(
        [*WORDS, *words], capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment(**environ)
    )


def payload_of(result: Result) -> Any:
    return json.loads(result.envelope)["payload"]


def alive(pid: int) -> bool:
    """Whether this process runs; one that only waits to be buried does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.startswith("Z")
