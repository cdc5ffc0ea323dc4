"""A few threads for the synchronous handlers of one actor, which can be left behind when a handler hangs."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_HERE = str(Path(__file__).parent)

MOST_ABANDONED = 32
"""How many hung threads of one actor are replaced. More of them hold its places, so that they cannot use up the machine."""


class Job:
    """One call in a thread: when it began, and where it is."""

    __slots__ = ("abandoned", "began", "call", "ended", "future", "thread")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.future: Future[Any] = Future()
        self.began: float | None = None
        self.thread = 0
        self.ended = False
        self.abandoned = False

    def __call__(self) -> Any:
        return self.call()

    def running_for(self) -> float:
        """Real seconds since it began; 0 before that."""
        return 0.0 if self.began is None else time.monotonic() - self.began

    def where(self) -> str:
        """The stack of the thread that runs it, as a traceback prints it, without the frames of OnCue."""
        frame = sys._current_frames().get(self.thread)  # noqa: SLF001  # the documented way to look at another thread
        if frame is None or self.ended:
            return ""
        stack = traceback.extract_stack(frame)
        own = [number for number, entry in enumerate(stack) if entry.filename.startswith(_HERE)]
        return "".join(traceback.format_list(stack[own[-1] + 1 :])) if own else ""


class Threads(Executor):
    """At most `size` calls at a time, each in a daemon thread: one that hangs does not keep the process from ending.

    An abandoned call no longer counts, up to a bound: another thread takes its place, and there is one less when it ends.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._jobs: deque[Job] = deque()
        self._alive = 0
        self._idle = 0
        self._abandoned = 0
        self._made = 0
        self._closed = False

    @property
    def abandoned(self) -> int:
        """How many calls were given up and are still running."""
        return self._abandoned

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As any executor does. A `Job` that is submitted can be abandoned later."""
        job = fn if isinstance(fn, Job) else Job(lambda: fn(*args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("these threads have ended")
            self._jobs.append(job)
            self._grow()
            self._work.notify()
        return job.future

    def abandon(self, job: Job) -> bool:
        """Let another thread take the place of the one that runs `job`; False if the job is not running."""
        with self._lock:
            if job.began is None or job.ended or job.abandoned:
                return False
            job.abandoned = True
            self._abandoned += 1
            self._grow()
            return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Let the threads end when they are idle. Waits for none of them, since one that hangs would never end."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                for job in self._jobs:
                    job.future.cancel()
                self._jobs.clear()
            self._work.notify_all()

    def _most(self) -> int:
        return self._size + min(self._abandoned, MOST_ABANDONED)

    def _grow(self) -> None:
        while len(self._jobs) > self._idle and self._alive < self._most():
            self._alive += 1
            self._idle += 1
            self._made += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._made}", daemon=True).start()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if job.future.set_running_or_notify_cancel():
                self._perform(job)
            del job  # what it holds must not live for as long as the thread waits
            with self._lock:
                self._idle += 1

    def _next(self) -> Job | None:
        """The next job, or None when this thread is to end."""
        with self._lock:
            while not self._jobs and not self._closed and self._alive <= self._most():
                self._work.wait()
            self._idle -= 1
            if not self._jobs or self._alive > self._most():
                self._alive -= 1
                return None
            return self._jobs.popleft()

    def _perform(self, job: Job) -> None:
        job.thread = threading.get_ident()
        job.began = time.monotonic()
        try:
            result = job.call()
        except BaseException as error:
            self._end(job)
            job.future.set_exception(error)
        else:
            self._end(job)
            job.future.set_result(result)

    def _end(self, job: Job) -> None:
        with self._lock:
            job.ended = True
            self._abandoned -= job.abandoned
