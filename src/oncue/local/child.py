"""One run of a program as a child of this process, started without a fork that Python takes part in.

Event loops may fork to start a program, and run what is registered for forks before that: SQLite connections are waited for
then, as long as another program keeps their file busy, and everything in the loop waits too.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import Signals


class Child:
    """A program that was started, in a session of its own. To be made in the event loop's thread, and closed.

    Making it blocks for a millisecond or two, and raises `OSError` when the program cannot be started. The thread has to last:
    a program may have asked the kernel to end it with the thread that started it.
    """

    def __init__(self, words: Sequence[str], *, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # whoever may run this may run that
            words,
            stdin=subprocess.PIPE,  # only held: its end tells the child that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,  # a terminal's Ctrl-C is for this process alone
            env=dict(environment),
            cwd=folder,
        )
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop,), name=f"oncue-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end; its `returncode`. May be cancelled and repeated."""
        await self._ended.wait()
        return self._process.returncode

    def tell(self, number: Signals) -> None:
        """Send it a signal, if it runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    @asynccontextmanager
    async def output(self) -> AsyncIterator[asyncio.StreamReader]:
        """What it and its children print. Once only."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            yield reader
        finally:
            transport.close()

    def close(self) -> None:
        """Let go of it once it has ended and nobody reads any more. May be called twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        with suppress(RuntimeError):  # the loop was closed, so nobody waits
            loop.call_soon_threadsafe(self._ended.set)
