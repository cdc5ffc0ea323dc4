"""Gathers what is asked of one queue into batches of ten.

A batch that is full goes out at once. One that is not waits for its like: until the one before it was answered, which while much
is going on fills it, and is at once while little is.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Task
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    MessageTooLargeError,
    OnCueError,
    ThrottledError,
    again,
)
from oncue.transports.sqs.calls import Calls, pause
from oncue.transports.sqs.faults import is_passing, said

FULL = 10
"""Entries that a batch may have."""
_AT_A_TIME = 4
"""Batches of one line that are under way."""

SEND, DELETE, CHANGE = "send_message_batch", "delete_message_batch", "change_message_visibility_batch"


class Job:
    """One entry on its way: its bytes, and until when it makes sense. `future` has what came of it."""

    __slots__ = ("attempt", "entry", "future", "size", "until")

    def __init__(self, entry: dict[str, Any], future: Future[None], size: int = 0, until: float = float("inf")) -> None:
        self.entry = entry
        self.future = future
        self.size = size
        self.until = until
        self.attempt = 0

    def end(self, error: OnCueError | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
                self.future.exception()  # nobody may wait for it any more


class Line:
    """One operation on one queue."""

    def __init__(self, calls: Calls, operation: str, queue: str, url: str, *, ordered: bool) -> None:
        self._calls = calls
        self._operation = operation
        self._queue = queue
        self._url = url
        self._ordered = ordered
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Job] = deque()
        self._under_way: set[Task[None]] = set()
        self._soon = False
        self._later = 0
        self.on_error: Callable[[OnCueError], object] = lambda _: None

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._under_way and not self._later

    def add(self, jobs: Sequence[Job]) -> None:
        """Have them done; their futures are told."""
        self._waiting.extend(jobs)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._soon = False
        most = 1 if self._ordered else _AT_A_TIME
        while self._waiting and len(self._under_way) < most:
            if self._under_way and len(self._waiting) < FULL:
                return
            batch = self._next()
            if batch:
                task = self._loop.create_task(self._run(batch))
                self._under_way.add(task)
                task.add_done_callback(self._over)

    def _over(self, task: Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting:
            self._flush()

    def _next(self) -> list[Job]:
        batch: list[Job] = []
        size, now = 0, self._loop.time()
        while self._waiting and len(batch) < FULL:
            job = self._waiting[0]
            if batch and size + job.size > self._calls.address.size:
                break
            self._waiting.popleft()
            if job.until <= now:
                job.end(LeaseLostError(self._queue, "?"))
                continue
            batch.append(job)
            size += job.size
        return batch

    async def _run(self, batch: Sequence[Job]) -> None:
        entries = [{"Id": str(number), **job.entry} for number, job in enumerate(batch)]
        until = min(job.until for job in batch)
        try:
            answer = await self._calls.ask(
                self._operation, self._queue, until=until, QueueUrl=self._url, Entries=entries
            )
        except OnCueError as error:
            self._failed(batch, error, until)
            return
        except asyncio.CancelledError:
            self._failed(batch, ConnectionLostError(f"{self._calls.address.shown}: closed before it answered"), until)
            raise
        unheard = dict(enumerate(batch))
        for good in answer.get("Successful") or ():
            job = unheard.pop(int(good["Id"]), None)
            if job is not None:
                job.end(None)
        for bad in answer.get("Failed") or ():
            job = unheard.pop(int(bad["Id"]), None)
            if job is not None:
                self._refused(job, said(bad, self._calls.address.shown, self._queue))
        for job in unheard.values():
            job.end(ConnectionLostError(f"{self._calls.address.shown}: an entry of a batch was not answered"))

    def _failed(self, batch: Sequence[Job], error: OnCueError, until: float) -> None:
        """The whole batch was refused, or until then only: what has more time than others in it is asked for again."""
        self.on_error(error)
        if isinstance(error, MessageTooLargeError) and len(batch) > 1:
            for job in batch:  # one of them: each alone will tell
                task = self._loop.create_task(self._run([job]))
                self._under_way.add(task)
                task.add_done_callback(self._over)
            return
        for job in batch:
            if is_passing(error) and job.until > until:
                self._refused(job, again(error))
            else:
                job.end(self._own(job, again(error)))

    def _refused(self, job: Job, error: OnCueError) -> None:
        """One entry was: what may be asked again is, but not where that would change an order."""
        passing = isinstance(error, ThrottledError | ConnectionLostError)
        seconds = pause(job.attempt)
        if not passing or self._ordered or job.attempt >= 6 or self._loop.time() + seconds >= job.until:
            job.end(self._own(job, error))
            return
        job.attempt += 1
        self._later += 1
        self._loop.call_later(seconds, self._again, job)

    def _again(self, job: Job) -> None:
        self._later -= 1
        self.add([job])

    def _own(self, job: Job, error: OnCueError) -> OnCueError:
        if isinstance(error, MessageTooLargeError):
            return MessageTooLargeError(self._queue, job.size, min(job.size, self._calls.address.size))
        return error
