"""The link to a runtime: finds it, notices when it goes away or hangs, and finds it again.

Our runtime is reached over one lasting connection; of another's only the socket is known, and whether somebody listens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from asyncio import Task
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from oncue.workloads.socket import ERROR_FILE, RuntimeClient, announced, load_error

_log = logging.getLogger("oncue.sidecar")

_LOOKS = (0.005, 0.01, 0.02, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2)
"""Seconds between looks for a runtime that is not there yet; the last for all further ones."""
_PING = 5.0
"""Seconds between signs of life of our runtime, which answers also while handlers run."""
_SILENCE = 20.0
"""Seconds without one after which it counts as hung: the connection is given up, and messages with it."""
_GREETING = 5.0
"""Seconds that a runtime has to answer a connection."""
_FOREIGN = 0.5
"""Seconds between looks whether another's runtime still says that it is ready."""
LONGEST_PATH = 107
"""Bytes that the path of a socket may have."""


class Link:
    """`there` is set while messages can be handed over: by `client`, or one connection each when that is None.

    `calls` holds the ids of what the runtime works on. `changed` is told whenever it comes or goes.
    """

    def __init__(self, socket: Path) -> None:
        self.there = asyncio.Event()
        self.client: RuntimeClient | None = None
        self.calls: dict[str, None] = {}
        self.error = ""
        self.changed: Callable[[], None] = lambda: None
        self._socket = socket
        self._gone = asyncio.Event()
        self._occupied: Task[bytes] | None = None

    @property
    def concurrency(self) -> int:
        """How many messages the runtime works on at the same time; 1 for one that takes a connection for each."""
        return 1 if self.client is None else self.client.hello.concurrency

    def unready(self) -> str:
        """Why no message can be handed over now; empty when it can."""
        return "" if self.there.is_set() else f"the runtime at {self._socket}: {self.error or 'not there yet'}"

    def lost(self, why: str) -> None:
        """The runtime is away, as whoever used the link may have noticed first."""
        if self.there.is_set():
            self.error = why
            self.there.clear()
            self._gone.set()
            self.changed()

    def occupied(self, call: Task[bytes]) -> None:
        """A runtime that takes one message after the other is still at `call`, for which nobody waits any more."""
        self._occupied = call
        call.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception() and None)
        self.lost("it still works on a message that took too long")

    async def keep(self) -> None:
        """Look after the runtime until cancelled: find it, watch it, find it again."""
        while True:
            await self._find()
            self._gone.clear()
            self.there.set()
            self.error = ""
            self.changed()
            try:
                await (self._watch_foreign() if self.client is None else self._watch(self.client))
            finally:
                await self._hang_up()

    async def close(self) -> None:
        """Hang up, which cancels what is in flight. May be called twice."""
        self.there.clear()
        await self._hang_up()
        if self._occupied is not None:
            self._occupied.cancel()
            await asyncio.gather(self._occupied, return_exceptions=True)

    async def _hang_up(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()

    async def _find(self) -> None:
        looks = 0
        while not await self._reach():
            await asyncio.sleep(_LOOKS[min(looks, len(_LOOKS) - 1)])
            looks += 1

    async def _reach(self) -> bool:
        try:
            found = announced(self._socket.parent)
            failure = load_error(self._socket.parent) if found is None else None
        except OSError as error:
            self.error = f"its folder cannot be read: {error.strerror or error}"
            return False
        if failure is not None:
            self.error = f"its handler cannot be loaded: {failure.message}"
        if found is None:
            return False
        try:
            async with asyncio.timeout(_GREETING):
                if self._occupied is not None and not self._occupied.done():
                    return False
                if found.protocol:
                    self.client = await RuntimeClient.connect(self._socket, kill=True)
                else:
                    await self._knock()
        except (OSError, TimeoutError) as error:
            self.error = f"it does not answer: {str(error) or 'no hello'}"
            _log.debug("the runtime at %s, protocol %d, does not answer: %s", self._socket, found.protocol, error)
            return False
        return True

    async def _knock(self) -> None:
        """Connect and hang up, as Asya's sidecar does to see whether somebody listens."""
        _, writer = await asyncio.open_unix_connection(str(self._socket))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _watch(self, client: RuntimeClient) -> None:
        """Return when the runtime has hung up, is stopping, or gives no sign of life."""
        losing = asyncio.create_task(client.lose())
        gone = asyncio.create_task(self._gone.wait())
        pinging = asyncio.create_task(_ping(client))
        tasks = [losing, gone, pinging]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.lost(client.lost or ("it is stopping" if client.stopping else "it gives no sign of life"))
        if client.stopping:  # what runs is still answered
            await client.lose()

    async def _watch_foreign(self) -> None:
        while not self._gone.is_set():
            if not self._still_ready():
                self.lost("it is not ready any more")
            with suppress(TimeoutError):
                async with asyncio.timeout(_FOREIGN):
                    await self._gone.wait()

    def _still_ready(self) -> bool:
        try:
            found = announced(self._socket.parent)
            return found is not None and not found.protocol and self._socket.exists()
        except OSError:
            return False


async def _ping(client: RuntimeClient) -> None:
    """Return when there was no answer for too long, or the runtime is stopping."""
    while not client.stopping:
        await asyncio.sleep(_PING)
        try:
            async with asyncio.timeout(_SILENCE):
                await client.ping()
        except (TimeoutError, ConnectionResetError):
            return


def check_path(socket: Path) -> str:
    """What keeps `socket` from ever being one; empty when nothing does."""
    size = len(os.fsencode(socket))
    if size > LONGEST_PATH:
        return f"the path of the socket has {size} bytes, and no socket's may have more than {LONGEST_PATH}: {socket}"
    if socket.is_dir():
        return f"the socket's path is a folder: {socket}"
    return ""


def why_not_loaded(socket: Path, since: float) -> str:
    """Why the runtime could not load its handler, when it has said so after `since`, or its word is not taken back in time.

    `since` is in the seconds of `time.time`. A file from before may be that of an earlier start of the same pod.
    """
    try:
        failure = load_error(socket.parent)
        if failure is None:
            return ""
        written = (socket.parent / ERROR_FILE).stat().st_mtime
    except OSError:
        return ""
    if written < since and time.time() - since < 3.0:
        return ""
    return f"the runtime could not load its handler: {failure.type}: {failure.message}"
