"""What becomes of open connections when this process forks. For all in this project that opens SQLite files and stays open.

While it forks none of them is in use. The child lets go of them, but frees them only when it opens a file itself: some event
loops fork to start a program, too, and run in that child what is registered for forks, and a lock within SQLite that some
other thread held at that moment would never be released there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol
from weakref import WeakSet

from oncue.transports.sqlite.file import BUSY


class Open(Protocol):
    """Has, or may have, a connection, which is in use only while `turn` is held."""

    @property
    def turn(self) -> threading.Lock: ...
    def abandon(
        self,
    ) -> Callable[[], None] | None: ...  # in the child: let go of it without a call to SQLite; what frees it


opening = threading.Lock()
"""Held while what is open changes in a way that a child must not see half done."""
_watching = threading.Lock()
_open: WeakSet[Open] = WeakSet()
_paused: list[threading.Lock] = []
_inherited: list[Callable[[], None]] = []


def watch(each: Open) -> None:
    """Pause and abandon it at forks, for as long as it exists. Not to be called while its `turn` is held."""
    with _watching:
        _open.add(each)


def free_inherited() -> None:
    """Free what came from a parent, if this is a child; to be called before a file is opened."""
    while _inherited:
        _inherited.pop()()


def _locks() -> Iterator[threading.Lock]:
    yield opening
    yield _watching
    yield from [each.turn for each in _open]


def _pause() -> None:
    _paused.extend(lock for lock in _locks() if lock.acquire(timeout=2 * BUSY))


def _resume() -> None:
    while _paused:
        _paused.pop().release()


def _forget() -> None:
    _inherited.extend(free for each in list(_open) if (free := each.abandon()) is not None)
    _resume()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause, after_in_parent=_resume, after_in_child=_forget)
