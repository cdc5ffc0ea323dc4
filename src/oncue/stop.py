"""How pumps are told to end, and how they wait for what may not come or may not end."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Task
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from oncue.core.errors import TransportError

_log = logging.getLogger("oncue.pump")

Result = TypeVar("Result")


class Stop:
    """Tells pumps to end; one object may serve all pumps of a process. Its methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._forced = asyncio.Event()
        self._deadline = 0.0

    @property
    def requested(self) -> bool:
        """Whether the pumps were told to end, in either way."""
        return self._asked.is_set()

    def gently(self, grace: float) -> None:
        """Take no more messages; handlers that run may finish for `grace` seconds. Said again, the first time counts."""
        if not self._asked.is_set():
            self._deadline = asyncio.get_running_loop().time() + grace
            self._asked.set()

    def now(self) -> None:
        """Cancel the handlers that run and give their messages back."""
        self._asked.set()
        self._forced.set()

    async def wait(self) -> None:
        """Return when the pumps are to end."""
        await self._asked.wait()

    async def wait_at_most(self, seconds: float) -> None:
        """Return when the pumps are to end, or after `seconds`."""
        await happens(self._asked, seconds)

    async def wait_forced(self) -> None:
        """Return when the grace period is over, or at once after `now`; to be called after `wait`."""
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._forced.wait()
        except TimeoutError:
            return


async def unless(stop: Stop, waited: Awaitable[Result]) -> Result | None:
    """What `waited` brings, awaited in this very task; None when told to stop before that."""
    stopped = asyncio.create_task(stop.wait())
    limit = asyncio.timeout(None)

    def interrupt(_stopped: Task[None]) -> None:
        with suppress(RuntimeError):  # what was waited for came in the same turn of the loop
            limit.reschedule(0.0)

    try:
        async with limit:
            stopped.add_done_callback(interrupt)
            try:
                return await waited
            finally:
                stopped.remove_done_callback(interrupt)
    except TimeoutError:
        if limit.expired():
            return None
        raise
    finally:
        await cancel([stopped])


async def abandoned_at(stop: Stop, waited: Coroutine[Any, Any, Result]) -> Result | None:
    """As `unless`, but in a task of its own, which is left to itself if it does not end soon after its cancellation.

    For what belongs to others and may take its time to give up, such as connecting to somebody who does not answer.
    """
    task = asyncio.create_task(waited)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        left = [each for each in (task, stopped) if not each.done()]
        if left:
            await cancel(left)


async def within_grace(busy: Sequence[Task[None]], stop: Stop) -> None:
    """Return when all are done, the grace period is over, or `stop` is forced."""
    forced = asyncio.create_task(stop.wait_forced())
    pending: set[Task[None]] = set(busy)
    try:
        while pending and not forced.done():
            _, pending = await asyncio.wait({*pending, forced}, return_when=asyncio.FIRST_COMPLETED)
            pending.discard(forced)
    finally:
        await cancel([forced])


async def happens(event: asyncio.Event, within: float) -> None:
    """Return when `event` is set, or after `within` seconds."""
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return


async def cancel(tasks: Sequence[Task[Any]]) -> set[Task[Any]]:
    """Cancel tasks and wait for their end, but not for ever; those that refuse, as users' code may."""
    for task in tasks:
        task.cancel()
    done, left = await asyncio.wait(tasks, timeout=1.0)
    for task in done:
        report(task)
    return left


def report(task: Task[Any]) -> None:
    """Log what a task that nobody asks any more died of, unless it is one of the errors that all receivers get at once."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, TransportError):
        _log.error("a task of a pump failed", exc_info=error)


def uncancel() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
