"""Runs the command line as a process or on a terminal, and fills the store that it then meets."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Any

from click.testing import Result

from oncue.core.failure import Failure
from oncue.core.message import Message, Send
from oncue.core.times import timestamp
from oncue.dead import SENT_AT, dead_letter
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Transport

URL = "sqlite:///jobs.db"
WORDS = [sys.executable, "-P", "-m", "oncue"]

Run = Callable[..., Result]


def process(*words: str, input: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line as a process."""
    return subprocess.run([*WORDS, *words], input=input, capture_output=True, timeout=30, check=False, **options)


def on_terminal(*words: str, typed: bytes = b"", until: bytes = b"", columns: int = 100) -> tuple[int, str]:
    """Runs the command line on a terminal; returns the exit code and all that was shown.

    `typed` is typed when something, or `until`, was shown.
    """
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    taking = [sys.executable, "-c", "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"]
    shown = b""
    with subprocess.Popen([*taking, *WORDS, *words], stdin=far, stdout=far, stderr=far, env=environment) as child:
        os.close(far)
        try:
            while piece := _read(near):
                shown += piece
                if typed and until in shown:
                    os.write(near, typed)
                    typed = b""
            code = child.wait(timeout=30)
        finally:
            child.kill()
            os.close(near)
    return code, shown.decode()


def _read(terminal: int) -> bytes:
    ready, _, _ = select.select([terminal], [], [], 30)
    assert ready, "nothing came for half a minute"
    try:
        return os.read(terminal, 65536)
    except OSError:  # the far end is closed
        return b""


def with_transport(work: Callable[[Transport], Any]) -> Any:
    """What `work` returns when it is given the transport of the current folder."""

    async def go() -> Any:
        transport = await open_transport(URL)
        try:
            return await work(transport)
        finally:
            await transport.close()

    return asyncio.run(go())


def make_queue(name: str, count: int = 0) -> None:
    """A queue and its dead queue, with `count` messages `m0`, `m1`, …"""

    async def make(transport: Transport) -> None:
        await transport.declare(QueueSpec(name=name))
        await transport.declare(QueueSpec(name=f"{name}-dlq"))
        for number in range(count):
            await transport.send(send_of(name, f"m{number}"))

    with_transport(make)


def send_of(queue: str, id: str, body: bytes = b"{}") -> Send:
    return Send(queue, Message(body, id, {SENT_AT: timestamp()}))


def bury(
    queue: str, ids: Sequence[str], error: str = "ValueError", text: str = "no good", body: bytes = b'{"n": 1}'
) -> None:
    """Dead letters of `queue` with these ids."""

    async def send(transport: Transport) -> None:
        for name in (queue, f"{queue}-dlq"):
            await transport.declare(QueueSpec(name=name))
        failure = Failure("processing_error", error, text, "Traceback: here")
        letters = [
            dead_letter(queue, Message(body, id, {SENT_AT: timestamp(), "colour": "red"}), failure, 3) for id in ids
        ]
        await transport.send(*letters)

    with_transport(send)


def depth_of(queue: str) -> int:
    """How many messages are ready in `queue`."""
    ready = with_transport(lambda transport: transport.depth(queue)).ready
    assert ready is not None
    return ready
