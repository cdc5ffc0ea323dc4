"""How other processes find what runs in a folder: a lock that is held while it runs, a file that says where, and a socket
that tells how it goes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec

from oncue.core.errors import ConfigError, OnCueError

HOME = Path(".oncue")
"""The folder in the current one that knows what runs there."""

_LOCK, _FILE, _SOCKET = "up.lock", "up.json", "control"
_PREFIX = "oncue-"
_LONGEST = 60
"""Bytes that the folder's path may have, so that sockets below it have paths that the system takes."""
_BRIEF = 0.5
"""Seconds that somebody who only looks may hold the lock."""
_ANSWER = 10.0


class Running(msgspec.Struct, frozen=True):
    """What runs in a folder: its process, the folder of its sockets, its transport without secrets, how long it may take
    to end (s), and since when it runs (RFC 3339)."""

    pid: int
    sockets: str
    url: str
    grace: float
    started: str


class ActorReport(msgspec.Struct, frozen=True, kw_only=True):
    """One actor at one moment. `state` is `idle`, `starting`, `running`, `failing` or `stopping`; counts are None where
    nobody can tell. `done` and `errors` are since the start."""

    name: str
    state: str
    replicas: int
    wanted: int
    built_in: bool = False
    ready: int | None = None
    leased: int | None = None
    delayed: int | None = None
    dead: int | None = None
    done: int | None = None
    errors: int | None = None
    error: str = ""


class Taken(OnCueError):  # noqa: N818  # a state, which is an error only for whoever wanted it otherwise
    """Something runs in this folder already."""

    def __init__(self, running: Running | None) -> None:
        who = f"process {running.pid}, since {running.started}" if running is not None else "just starting or ending"
        super().__init__(f"oncue up runs already in this folder ({who}); oncue down ends it")


class NoAnswer(OnCueError):  # noqa: N818
    """What runs here does not answer."""


_decode = msgspec.json.Decoder(Running).decode
_decode_reports = msgspec.json.Decoder(list[ActorReport]).decode


@contextmanager
def making(home: Path) -> Iterator[None]:
    """Make the folder `home` if it is missing; raise `ConfigError` when it, or what the block makes in it, cannot be made."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"oncue up cannot keep its state in {home}: {error.strerror}") from None


@contextmanager
def claim(home: Path, url: str, grace: float, started: str) -> Iterator[Running]:
    """Be what runs in the folder that `home` belongs to, until this process ends. Raise `Taken` when something else is.

    After the block others see that it is ending. What a killed predecessor has left behind is removed. Blocks for half a
    second at most.
    """
    with making(home):
        # Never closed: it is given back with the last of this process.
        lock = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    if not _locked(lock):
        os.close(lock)
        raise Taken(_read(home))
    _tidy(_read(home))
    running = Running(os.getpid(), tempfile.mkdtemp(prefix=_PREFIX, dir=_short()), url, grace, started)
    try:
        _write(home / _FILE, msgspec.json.encode(running))
        yield running
    finally:
        (home / _FILE).unlink(missing_ok=True)
        shutil.rmtree(running.sockets, ignore_errors=True)


def find(home: Path) -> Running | None:
    """What runs in the folder of `home`; None when nothing does. Raise `Taken` when it is too young to say more."""
    try:
        with (home / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BlockingIOError:
        running = _read(home)
        if running is None:
            raise Taken(None) from None
        return running
    return None


def ended(home: Path, within: float) -> bool:
    """Wait until nothing runs in the folder of `home`, or so many seconds have passed; whether it has ended. Blocks."""
    limit = time.monotonic() + within
    with (home / _LOCK).open() as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= limit:
                    return False
            time.sleep(0.05)


def ask(running: Running) -> Sequence[ActorReport]:
    """How its actors are. Raise `NoAnswer` when it does not say. Blocks for some seconds at most."""
    text = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER)
            connection.connect(str(Path(running.sockets) / _SOCKET))
            while piece := connection.recv(65536):
                text += piece
        return _decode_reports(text)
    except (OSError, msgspec.DecodeError) as error:
        raise NoAnswer(f"process {running.pid} does not answer: {error}") from None


@asynccontextmanager
async def answering(running: Running, report: Callable[[], Awaitable[Sequence[ActorReport]]]) -> AsyncIterator[None]:
    """Answer `ask` while the block lasts."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # whoever asked is gone
            try:
                writer.write(msgspec.json.encode(await report()))
                await writer.drain()
            finally:
                writer.close()

    server = await asyncio.start_unix_server(answer, Path(running.sockets) / _SOCKET)
    try:
        yield
    finally:
        server.close()


def _locked(file: int) -> bool:
    limit = time.monotonic() + _BRIEF
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= limit:
                return False
        time.sleep(0.02)


def _read(home: Path) -> Running | None:
    try:
        return _decode((home / _FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _write(path: Path, text: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(text)
    new.replace(path)


def _tidy(left: Running | None) -> None:
    """Remove the sockets of one that was killed, if they are surely its own."""
    if left is None:
        return
    folder = Path(left.sockets)
    with suppress(OSError):
        if folder.name.startswith(_PREFIX) and folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
            shutil.rmtree(folder)


def _short() -> str:
    """A folder for temporary files whose path is short."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= _LONGEST else "/tmp"  # noqa: S108  # what is made there is ours alone
