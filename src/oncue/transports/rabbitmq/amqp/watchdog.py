"""Heartbeats while the event loop is held up, as by a handler that computes for minutes.

One thread for the whole process sends the heartbeats of those connections whose loop had no turn for half a heartbeat. It is of
no use while something holds the interpreter's lock, and does nothing for TLS, whose state belongs to the loop. When the process
is stopped, so is the thread: then the server is right to take the connection for lost.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol


class Watched(Protocol):
    """A connection; `beat` is called from the thread."""

    heartbeat: int
    ran: float

    def beat(self) -> None: ...


class _Watchdog:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()
        self._running = False

    def watch(self, connection: Watched) -> None:
        with self._changed:
            self._watched.add(connection)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="oncue-amqp-watchdog", daemon=True).start()
            self._changed.notify()

    def forget(self, connection: Watched) -> None:
        with self._changed:
            self._watched.discard(connection)
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while self._watched:
                now = time.monotonic()
                for connection in self._watched:
                    if now - connection.ran > connection.heartbeat / 2:
                        connection.beat()
                self._changed.wait(min(connection.heartbeat for connection in self._watched) / 4)
            self._running = False


_watchdog = _Watchdog()


def _renew() -> None:
    """A forked process has no thread, and no business on its parent's sockets."""
    global _watchdog  # noqa: PLW0603 - there is one in each process
    _watchdog = _Watchdog()


os.register_at_fork(after_in_child=_renew)


def watch(connection: Watched) -> None:
    """Keep a connection alive from now on."""
    _watchdog.watch(connection)


def forget(connection: Watched) -> None:
    """Stop that; for one that is not watched, too."""
    _watchdog.forget(connection)
