"""Gathers what is asked of one queue into calls of up to a thousand.

A call goes out at once while nothing is under way. While something is, others wait for their like until it was answered, or until
they fill a call of their own.
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
    TransportClosedError,
    again,
)
from oncue.transports.pubsub.calls import ACKNOWLEDGE, CHANGE, PUBLISH, Calls, Operation, pause
from oncue.transports.pubsub.faults import refused
from oncue.transports.pubsub.wire import AcknowledgeRequest, ModifyAckDeadlineRequest, PublishRequest

FULL = 1000
"""Entries that a call may have."""
_LARGEST = {PUBLISH.name: 9_900_000, ACKNOWLEDGE.name: 400_000, CHANGE.name: 400_000}
"""Bytes that a call may have."""
_AT_A_TIME = 4
"""Calls of one line that are under way."""
_PASSED_ON = 6


class Job:
    """One entry on its way: its bytes, and until when it makes sense. `future` has what came of it."""

    __slots__ = ("attempt", "entry", "future", "seconds", "size", "until")

    def __init__(
        self, entry: Any, future: Future[None], size: int, until: float = float("inf"), seconds: int = 0
    ) -> None:
        self.entry = entry
        self.future = future
        self.size = size
        self.until = until
        self.seconds = seconds
        self.attempt = 0

    def end(self, error: OnCueError | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
                self.future.exception()  # nobody may wait for it any more


class Line:
    """One operation on one topic or subscription."""

    def __init__(self, calls: Calls, operation: Operation, queue: str, place: str, *, ordered: bool = False) -> None:
        self._calls = calls
        self._operation = operation
        self._queue = queue
        self._place = place
        self._ordered = ordered
        self._largest = _LARGEST[operation.name]
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

    def give_up(self) -> None:
        """Nothing more is sent."""
        while self._waiting:
            self._waiting.popleft().end(TransportClosedError())
        for task in self._under_way:
            task.cancel()

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
                self._start(batch)

    def _start(self, batch: Sequence[Job]) -> None:
        task = self._loop.create_task(self._run(batch))
        self._under_way.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting:
            self._flush()

    def _next(self) -> list[Job]:
        """The next entries that fit into one call; a deadline is one for all that a call changes."""
        batch: list[Job] = []
        others: list[Job] = []
        size, now = 0, self._loop.time()
        while self._waiting and len(batch) < FULL:
            job = self._waiting[0]
            if batch and size + job.size > self._largest:
                break
            self._waiting.popleft()
            if job.until <= now:
                job.end(LeaseLostError(self._queue, "?"))
            elif batch and job.seconds != batch[0].seconds:
                others.append(job)
            else:
                batch.append(job)
                size += job.size
        self._waiting.extendleft(reversed(others))
        return batch

    async def _run(self, batch: Sequence[Job]) -> None:
        try:
            await self._calls.ask(self._operation, self._request(batch), self._queue)
        except OnCueError as error:
            self._failed(batch, error)
        except asyncio.CancelledError:
            for job in batch:
                job.end(ConnectionLostError(f"{self._calls.address.shown}: closed before it answered"))
            raise
        else:
            for job in batch:
                job.end(None)

    def _request(self, batch: Sequence[Job]) -> Any:
        entries = [job.entry for job in batch]
        if self._operation is PUBLISH:
            return PublishRequest(topic=self._place, messages=entries)
        if self._operation is ACKNOWLEDGE:
            return AcknowledgeRequest(subscription=self._place, ack_ids=entries)
        return ModifyAckDeadlineRequest(
            subscription=self._place, ack_ids=entries, ack_deadline_seconds=batch[0].seconds
        )

    def _failed(self, batch: Sequence[Job], error: OnCueError) -> None:
        """Either some handles were refused, and all else was done, or nothing is known of any."""
        handles = refused(error)
        if handles is not None:
            for job in batch:
                if job.entry not in handles:
                    job.end(None)
                elif handles[job.entry]:
                    self._ask_again(job)
                else:
                    job.end(LeaseLostError(self._queue, "?"))
            return
        self.on_error(error)
        if isinstance(error, MessageTooLargeError | LeaseLostError) and len(batch) > 1:
            for job in batch:  # one of them: each alone will tell
                self._start([job])
            return
        for job in batch:
            if isinstance(error, MessageTooLargeError):
                job.end(MessageTooLargeError(self._queue, job.size, min(job.size, self._largest)))
            else:
                job.end(again(error))

    def _ask_again(self, job: Job) -> None:
        """The service could not settle it at the moment."""
        seconds = pause(job.attempt)
        if job.attempt >= _PASSED_ON or self._loop.time() + seconds >= job.until:
            job.end(ThrottledError(f"{self._calls.address.shown}: could not settle a message at the moment"))
            return
        job.attempt += 1
        self._later += 1
        self._loop.call_later(seconds, self._now_again, job)

    def _now_again(self, job: Job) -> None:
        self._later -= 1
        self.add([job])
