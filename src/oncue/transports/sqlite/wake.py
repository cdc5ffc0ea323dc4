"""Wakes the consumers of other processes: a datagram to each of them names the queues that have something new.

Consumers listen on sockets in a folder beside the file. A datagram is a hint and may get lost; whoever relies on it looks by
himself now and then as well.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LONGEST_PATH = 100
_DOUBTFUL = 0.05
_FULL = 8


class Bell:
    """One process's end. Used by one thread; never raises."""

    def __init__(self, path: Path) -> None:
        self._folder = path.with_name(f"{path.name}-wake")
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._short: int | None = None
        self._heard: socket.socket | None = None
        self._sending: socket.socket | None = None
        self._listed = 0.0
        self._changed = -1
        self._others: list[str] = []

    def listen(self) -> socket.socket | None:
        """The socket on which others can be heard from now on; None where that does not work."""
        if self._heard is not None or not hasattr(socket, "AF_UNIX"):
            return self._heard
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            listening.setblocking(False)
            listening.bind(self._address(self._name))
        except OSError:
            listening.close()
            return None
        self._heard = listening
        return listening

    def heard(self) -> set[int] | None:
        """The queues named since the last call; None: perhaps more than could be kept, so any."""
        queues: set[int] = set()
        count = 0
        with suppress(OSError, ValueError):
            while self._heard is not None:
                data = self._heard.recv(4096)
                count += 1
                queues.update(map(int, data.split(b",")))
        return queues if count < _FULL else None

    def ring(self, queues: Iterable[int]) -> None:
        """Tell all other processes that listen; takes microseconds."""
        others = self._listening()
        if not others:
            return
        if self._sending is None:
            self._sending = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sending.setblocking(False)
        data = b",".join(b"%d" % queue for queue in queues)
        for name in others:
            try:
                self._sending.sendto(data, self._address(name))
            except ConnectionRefusedError:
                # Its process is gone without having tidied up.
                with suppress(OSError):
                    (self._folder / name).unlink()
            except OSError:
                self._changed = -1

    def close(self, *, inherited: bool = False) -> None:
        """Stop listening. In a forked child the sockets are the parent's, and only this side is closed."""
        if self._heard is not None:
            self._heard.close()
            self._heard = None
            if not inherited:
                with suppress(OSError):
                    (self._folder / self._name).unlink()
        if self._sending is not None:
            self._sending.close()
            self._sending = None
        if self._short is not None:
            with suppress(OSError):
                os.close(self._short)
            self._short = None

    def _listening(self) -> list[str]:
        if not hasattr(socket, "AF_UNIX"):
            return []
        try:
            changed = self._folder.stat().st_mtime_ns
            # Times of files are coarse: what changed just before it was listed may have changed again unnoticed.
            if changed != self._changed or self._listed - changed / 1e9 < _DOUBTFUL:
                self._listed = time.time()
                self._changed = changed
                self._others = [each.name for each in self._folder.iterdir() if each.name != self._name]
        except OSError:
            return []
        return self._others

    def _address(self, name: str) -> str:
        """The path of a socket; by way of an open folder where it would be too long for the system."""
        path = str(self._folder / name)
        if len(os.fsencode(path)) <= _LONGEST_PATH or sys.platform != "linux":
            return path
        if self._short is None:
            self._short = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._short}/{name}"
