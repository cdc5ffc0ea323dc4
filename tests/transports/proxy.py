"""A way to a server that can be cut, or go silent."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Self


class Proxy:
    """Stands between a client and what listens on the port `inner`, at `port`, which is a free one if none is given.

    `cut` breaks all connections; with `mute` the bytes of both sides vanish. requests, answers: how many bytes of the client's, or of
    the server's, still pass before the connection is cut that they pass through. cuts: how often any were cut.
    """

    def __init__(self, inner: int, port: int = 0) -> None:
        self._inner = inner
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.mute = False
        self.requests: int | None = None
        self.answers: int | None = None
        self.port = port
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", self._inner)
        pair = {writer, to_server}
        self._writers |= pair
        for source, target, side in ((reader, to_server, "requests"), (there, writer, "answers")):
            task = asyncio.create_task(self._pass(source, target, side, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, side: str, pair: set[Any]
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self.mute:
                    continue
                left = getattr(self, side)
                if left is not None:
                    setattr(self, side, left - len(data))
                    if left < len(data):
                        setattr(self, side, None)
                        self.cuts += 1
                        target.write(data[: max(0, left)])
                        with suppress(OSError):
                            await target.drain()
                        break
                target.write(data)
                await target.drain()
        await asyncio.sleep(0.01)  # what was passed on arrives first
        for each in pair:
            each.transport.abort()
        self._writers -= pair
