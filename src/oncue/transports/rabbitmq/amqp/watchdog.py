"""Heartbeats while the event loop is held up, as by a handler that computes for minutes.

One thread for the whole process sends them for those connections whose loop had no turn for half a heartbeat. It is of no use
while something holds the interpreter's lock, and does nothing for TLS, whose state belongs to the loop. When the process is
stopped, so is the thread: then the server is right to take the connection for lost.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol


class Watched(Protocol):
    """A connection with a heartbeat in seconds."""

    heartbeat: int

    def beat(
        self,
    ) -> bool: ...  # called from the thread: send one if it is due; False when there is nothing to watch any more


class _Watchdog:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as in a forked process, which has no thread and no business on its parent's sockets."""
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()

    def watch(self, connection: Watched) -> None:
        with self._changed:
            self._watched.add(connection)
            if len(self._watched) == 1:
                threading.Thread(target=self._run, name="oncue-amqp-watchdog", daemon=True).start()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while self._watched:
                self._changed.wait(min(connection.heartbeat for connection in self._watched) / 4)
                self._watched = {connection for connection in self._watched if connection.beat()}


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.forget)

watch = _watchdog.watch
"""Keep a connection alive from now on, until it ends."""
