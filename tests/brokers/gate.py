"""A gate before a server, that breaks the connections of its clients when it is told to: a process of its own.

Started as a program with two ports it takes connections on the first and passes them on to the second.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

_READ = 65_536


class Gate:
    """Stands before the port `inner`, and is reached at `outer`."""

    def __init__(self, outer: int, inner: int) -> None:
        words = [sys.executable, "-E", __file__, str(outer), str(inner)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._wait()

    def cut(self) -> None:
        """Break all connections; return when they are."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"cut\n")
        self._process.stdin.flush()
        self._wait()

    def close(self) -> None:
        """End it for good."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(10)

    def _wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the gate ended"


async def stand(outer: int, inner: int) -> None:
    """Pass on what comes, until the standard input ends; each line of it breaks all connections."""
    writers: set[asyncio.StreamWriter] = set()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()
        writers.discard(writer)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, to_server = await asyncio.open_connection("127.0.0.1", inner)
        except OSError:
            writer.transport.abort()
            return
        writers.update((writer, to_server))
        await asyncio.gather(copy(reader, to_server), copy(there, writer))

    await asyncio.start_server(accept, "127.0.0.1", outer)
    print(flush=True)
    while await lines.readline():
        for writer in list(writers):
            writer.transport.abort()
        print(flush=True)


if __name__ == "__main__":
    asyncio.run(stand(*map(int, sys.argv[1:])))
