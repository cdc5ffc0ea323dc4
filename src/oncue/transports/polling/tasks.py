"""What a transport has under way, so that all of it has an owner, who waits for its end."""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable, Coroutine
from typing import Any

_LAST_POLLS = 2.0
"""Seconds that requests for messages get to end by themselves when the transport is closed."""
_LOOK = 0.005


class Tasks:
    """One for each transport, bound to the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._work: set[Task[Any]] = set()
        self._polls: set[Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Have it run to its end, whoever is cancelled meanwhile; `finish` waits for it."""
        task = self.loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        return task

    def poll(self, work: Coroutine[Any, Any, None]) -> Task[None]:
        """The same for what may wait long: `finish` does not."""
        task = self.loop.create_task(work)
        self._polls.add(task)
        task.add_done_callback(self._polls.discard)
        return task

    async def finish(self, is_idle: Callable[[], bool]) -> None:
        """Return when nothing is under way, neither here nor where `is_idle` looks."""
        if self._polls:
            await asyncio.wait(self._polls, timeout=_LAST_POLLS)
        for task in list(self._polls):
            task.cancel()
        if self._polls:
            await asyncio.wait(self._polls)
        while self._work or not is_idle():
            if self._work:
                await asyncio.wait(self._work)
            else:
                await asyncio.sleep(_LOOK)

    def _ended(self, task: Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked was told, or is gone
