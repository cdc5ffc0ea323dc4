"""Starts the runtime's file as the program that it is, under a given Python, and talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from asyncio import Task
from pathlib import Path
from typing import Any, Self

from oncue.workloads.socket import RuntimeClient, exchange

RUNTIME = Path(__file__).parents[2] / "src/oncue/runtime.py"
USERS = Path(__file__).parent / "users"
VERSIONS = ("3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
PATIENCE = 30.0


def pythons() -> dict[str, Path]:
    """Each CPython that the machine has, by its version."""
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = {".".join(map(str, sys.version_info[:2])): Path(sys.executable)}
    for version in VERSIONS:
        places = [*sorted(root.glob(f"versions/{version}.*/bin/python")), shutil.which(f"python{version}")]
        for place in filter(None, places):
            found.setdefault(version, Path(place))
    return found


PYTHONS = pythons()
OLDEST = next(PYTHONS[version] for version in VERSIONS if version in PYTHONS)
NEWEST = next(PYTHONS[version] for version in reversed(VERSIONS) if version in PYTHONS)


def environment(folder: Path, handler: str | None, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASYA_", "ONCUE_", "PYTHON"))}
    kept["ONCUE_SOCKET_DIR"] = str(folder)
    if handler is not None:
        kept["ONCUE_HANDLER"] = handler
    return kept | settings


def run(
    python: Path, folder: Path, handler: str | None, *, cwd: Path = USERS, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a runtime that cannot start to its end."""
    command = [python, "-I", "-W", "error", RUNTIME]
    surroundings = environment(folder, handler, **settings)
    return subprocess.run(
        command, env=surroundings, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


class Beside:
    """A running runtime. Leaving it sends SIGTERM and expects a clean end, unless it has ended already."""

    def __init__(self, python: Path, handler: str, *, cwd: Path = USERS, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="oncue-"))
        self.socket = self.folder / "asya-runtime.sock"
        self.log: list[str] = []
        self.troubled = False
        self._code = 0
        self._told = False
        self._command = [str(python), "-I", "-W", "error", str(RUNTIME)]
        self._environment = environment(self.folder, handler, **settings)
        self._cwd = cwd
        self._lines = asyncio.Condition()

    def expect(self, code: int) -> None:
        """The program was ended by the test, with this code."""
        self._code = code

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, unless the program has ended."""
        self._told = True
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, cwd=self._cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._readers = [asyncio.create_task(self._read(stream)) for stream in self._streams()]

    async def __aenter__(self) -> Self:
        await self.start()
        try:
            await self.said("ready at")
        except BaseException as error:
            await self.end(type(error))
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.end(kind)

    async def end(self, kind: type[BaseException] | None) -> None:
        if kind is not None and self.process.returncode is None:
            self.process.kill()
        elif not self._told:
            self.tell(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self.process.wait()
                await asyncio.gather(*self._readers)
        finally:
            self.process._transport.close()  # type: ignore[attr-defined]
        left = sorted(path.name for path in self.folder.iterdir())
        shutil.rmtree(self.folder)
        if kind is None:
            assert code == self._code, self.text
            assert not left
            assert "Warning" not in self.text
            assert self.troubled or "Traceback" not in self.text, self.text

    def _streams(self) -> list[asyncio.StreamReader]:
        return [stream for stream in (self.process.stdout, self.process.stderr) if stream is not None]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            async with self._lines:
                self.log.append(line.decode())
                self._lines.notify_all()

    @property
    def text(self) -> str:
        return "".join(self.log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False)
        return [int(each) for each in found.stdout.split()]

    async def said(self, text: str, times: int = 1) -> None:
        """Wait until the log has `text`, or the program has ended."""
        async with asyncio.timeout(PATIENCE), self._lines:
            await self._lines.wait_for(lambda: self.text.count(text) >= times or self._ended())
        assert self.text.count(text) >= times, self.text

    def _ended(self) -> bool:
        return all(reader.done() for reader in self._readers)

    async def raw(self, body: bytes) -> Any:
        """One message by Asya's protocol, from bytes to what the answer's JSON is."""
        return json.loads(await exchange(self.socket, body, within=PATIENCE))

    async def send(self, payload: Any, **fields: Any) -> Any:
        envelope = {"id": "m-1", "route": {"actors": ["a", "b"], "current": 0}, "payload": payload, **fields}
        return await self.raw(json.dumps(envelope).encode())

    async def fault(self, payload: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
        """Code and details of the error that a message must end in."""
        (item,) = await self.send(payload, **fields)
        assert set(item) == {"error", "details"}, item
        return item["error"], item["details"]

    async def connect(self, **options: Any) -> RuntimeClient:
        return await RuntimeClient.connect(self.socket, **options)


def begin(work: Any) -> Task[Any]:
    return asyncio.get_running_loop().create_task(work)


async def until(condition: Any, *, within: float = PATIENCE) -> None:
    """Wait for what no event tells: a file of another process, its end."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def in_hand(client: RuntimeClient, count: int) -> None:
    """Wait until the runtime has so many requests of `client`."""
    async with asyncio.timeout(PATIENCE):
        while await client.ping() != count:
            await asyncio.sleep(0.001)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def cpu(pids: list[int]) -> int:
    """Ticks of processor time that the processes have used."""
    return sum(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) for pid in pids)
