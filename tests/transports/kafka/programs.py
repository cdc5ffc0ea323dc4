"""What runs in other processes: each function gets a pipe to talk over, and may be killed by what it works on."""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing.connection import Connection

from oncue import App, Retry

LIMIT = 3


def jobs(url: str, pipe: Connection | None = None) -> App:
    """An app with an actor that says what it has done, and is killed by the one that is called poison."""
    app = App(url)

    @app.actor(lease=60.0, concurrency=4, retry=Retry(max_attempts=LIMIT))
    async def job(word: str) -> None:
        await asyncio.sleep(0.02)
        if word == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if pipe is not None:
            pipe.send(word)

    return app


def worker(pipe: Connection, url: str) -> None:
    """Work until it is killed."""

    async def main() -> None:
        async with jobs(url, pipe).working():
            await asyncio.Event().wait()

    asyncio.run(main())
