"""Gathers what is asked of one queue into calls that take many entries.

A call goes out at once while nothing is under way. While something is, others wait for their like until it was answered, or until
they fill a call of their own.
"""

from __future__ import annotations

import asyncio
import math
import random
from asyncio import Future, Task
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    MessageTooLargeError,
    OnCueError,
    PartialSendError,
    QueueNotFoundError,
    TransportError,
    again,
)

_AT_A_TIME = 4
"""Calls of one line that are under way."""
_MOST = 6
"""How often one entry is asked for again."""
_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
"""Seconds until it is asked again by one who asked too often, at first and at most."""


def pause(attempt: int) -> float:
    """Seconds to wait before the next attempt, when `attempt` of them were too many; random."""
    return min(_LONGEST_PAUSE, _PAUSE * float(1 << min(attempt, 10))) * random.uniform(0.5, 1.0)


class Job:
    """One entry on its way: its bytes, until when it makes sense, and what all entries of its call have to have in common.

    `future` has what came of it.
    """

    __slots__ = ("attempt", "common", "entry", "future", "size", "until")

    def __init__(self, entry: Any, size: int = 0, until: float = math.inf, common: object = None) -> None:
        self.entry = entry
        self.size = size
        self.until = until
        self.common = common
        self.attempt = 0
        self.future: Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: OnCueError | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
                self.future.exception()  # nobody may wait for it any more


class Refusal(NamedTuple):
    """What became of one entry of a call that did others, and whether it may be asked for again."""

    error: OnCueError
    passing: bool


class Call(Protocol):
    """What is asked of one queue, for many entries at once. `most` of them, and `largest` bytes, are what it takes."""

    @property
    def most(self) -> int: ...
    @property
    def largest(self) -> int: ...

    async def ask(self, jobs: Sequence[Job], until: float) -> Mapping[int, Refusal]:
        """Return those that were refused, by position; raise `OnCueError` if all were, or if nobody can know."""
        ...

    def is_passing(self, error: OnCueError) -> bool:
        """Whether the call that `error` came of did nothing, and may be made again."""
        ...


class Line:
    """One call on one queue; `forget` is told its name when it is not there. In a line in `ordered` one call waits for another."""

    def __init__(self, call: Call, queue: str, forget: Callable[[str], object], *, ordered: bool = False) -> None:
        self._call = call
        self._queue = queue
        self._forget = forget
        self._ordered = ordered
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Job] = deque()
        self._under_way: set[Task[None]] = set()
        self._soon = False
        self._later = 0

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._under_way and not self._later

    def add(self, job: Job) -> None:
        """Have it done; its future is told."""
        self._waiting.append(job)
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._flush)

    async def do(self, entry: Any, size: int, until: float, common: object = None) -> None:
        """Return when it is done; raise what the service says. When cancelled, it may be done as well."""
        job = Job(entry, size, until, common)
        self.add(job)
        await job.future

    def _flush(self) -> None:
        self._soon = False
        at_a_time = 1 if self._ordered else _AT_A_TIME
        while self._waiting and len(self._under_way) < at_a_time:
            if self._under_way and len(self._waiting) < self._call.most:
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
        """The next that fit into one call."""
        batch: list[Job] = []
        others: list[Job] = []
        size, now, most, largest = 0, self._loop.time(), self._call.most, self._call.largest
        while self._waiting and len(batch) < most:
            job = self._waiting[0]
            if batch and size + job.size > largest:
                break
            self._waiting.popleft()
            if job.until <= now:
                job.end(LeaseLostError(self._queue, "?"))
            elif batch and job.common != batch[0].common:
                others.append(job)
            else:
                batch.append(job)
                size += job.size
        self._waiting.extendleft(reversed(others))
        return batch

    async def _run(self, batch: Sequence[Job]) -> None:
        until = min(job.until for job in batch)
        try:
            refused = await self._call.ask(batch, until)
        except OnCueError as error:
            self._failed(batch, error, until)
        except asyncio.CancelledError:
            for job in batch:
                job.end(ConnectionLostError(f"queue {self._queue!r}: closed before the service answered"))
            raise
        else:
            for position, job in enumerate(batch):
                refusal = refused.get(position)
                if refusal is None:
                    job.end(None)
                else:
                    self._refused(job, refusal)

    def _failed(self, batch: Sequence[Job], error: OnCueError, until: float) -> None:
        """The whole call was refused, or until then only: what has more time than others in it is asked for again."""
        if isinstance(error, QueueNotFoundError):
            self._forget(self._queue)
        if isinstance(error, MessageTooLargeError | LeaseLostError) and len(batch) > 1:
            for job in batch:  # one of them: each alone will tell
                self._start([job])
            return
        passing = self._call.is_passing(error)
        for job in batch:
            self._refused(job, Refusal(again(error), passing and job.until > until))

    def _refused(self, job: Job, refusal: Refusal) -> None:
        """What may be asked for again is, but not where that would change an order."""
        seconds = pause(job.attempt)
        late = self._loop.time() + seconds >= job.until
        if not refusal.passing or self._ordered or late or job.attempt >= _MOST:
            job.end(self._own(job, refusal.error))
            return
        job.attempt += 1
        self._later += 1
        self._loop.call_later(seconds, self._again, job)

    def _again(self, job: Job) -> None:
        self._later -= 1
        self.add(job)

    def _own(self, job: Job, error: OnCueError) -> OnCueError:
        if isinstance(error, MessageTooLargeError):
            return MessageTooLargeError(self._queue, job.size, min(job.size, self._call.largest))
        return error


class Parcel(NamedTuple):
    """One message on its way: the line that it goes out on, what is sent, and its bytes."""

    line: Line
    entry: Any
    size: int


async def send(parcels: Sequence[Parcel], until: float = math.inf) -> None:
    """Return when all are stored; raises what `Transport.send` raises. When cancelled, all may be stored as well."""
    jobs = [Job(parcel.entry, parcel.size, until) for parcel in parcels]
    for parcel, job in zip(parcels, jobs, strict=True):
        parcel.line.add(job)
    await asyncio.wait([job.future for job in jobs])
    failures = {}
    for position, job in enumerate(jobs):
        error = job.future.exception()
        if isinstance(error, TransportError):
            failures[position] = error
        elif error is not None:
            raise error
    if failures:
        first = next(iter(failures.values()))
        raise first if len(failures) == len(parcels) else PartialSendError(failures, len(parcels))
