"""Virtual time: an event loop whose clock jumps to the next timer when nothing else can happen.

An hour's delay costs no time, and the same program runs in the same order each time.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from asyncio import Future, Task
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Returned = TypeVar("Returned")
Arguments = TypeVarTuple("Arguments")

_PATIENCE = 5.0
"""Real seconds to wait for threads that the loop did not start, before it calls a standstill a deadlock."""


def run_in_virtual_time(main: Coroutine[Any, Any, Result] | Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine, or what a coroutine function without arguments returns, in a `VirtualTimeLoop`; return its result.

    Blocks, as `asyncio.run` does. Raise `RuntimeError` on a deadlock: every task waits, and nothing is left that could
    wake one.
    """
    coroutine = main() if callable(main) else main
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and jumps to the next timer when no task is ready.

    While work is in `run_in_executor` or `asyncio.to_thread`, or a socket is watched, it waits in real time, timers
    included, because the thread or the peer may be first. Threads started in another way are not known to it: time jumps
    ahead of them. With no task ready, no timer, no thread and no socket it raises `RuntimeError` rather than hang.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._in_threads = 0
        self._selecting = _Selector(self._wait)
        super().__init__(self._selecting)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Returned], *args: *Arguments
    ) -> Future[Returned]:
        """As usual; time is real until the thread is done."""
        future = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *timeout: float | None) -> None:
        """As usual; the time limit, where there is one, is real."""
        with self._real_time():
            await super().shutdown_default_executor(*timeout)

    def _thread_done(self, _future: Future[Any]) -> None:
        self._in_threads -= 1

    @contextmanager
    def _real_time(self) -> Iterator[None]:
        self._in_threads += 1
        try:
            yield
        finally:
            self._in_threads -= 1

    def _wait(self, selector: selectors.BaseSelector, timeout: float | None) -> _Events:
        if timeout is not None and timeout <= 0:
            return selector.select(0)
        if self._in_threads or len(selector.get_map()) > 1:  # one is the loop's own pipe
            started = time.monotonic()
            events = selector.select(timeout)
            elapsed = time.monotonic() - started
            self._advance(elapsed if events or timeout is None else max(elapsed, timeout))
            return events
        if timeout is not None:
            events = selector.select(0)
            if not events:
                self._advance(timeout)
            return events
        events = selector.select(_PATIENCE if threading.active_count() > 1 else 0)
        if not events:
            raise RuntimeError(_describe_deadlock(asyncio.all_tasks(self)))
        return events

    def _advance(self, seconds: float) -> None:
        # At large times the steps between floats are longer than a short wait, and than the moment by which asyncio lets
        # timers be early: the clock has to go forward all the same, and a timer has to fire.
        self._now = max(self._now + seconds, math.nextafter(self._now, math.inf))
        self._clock_resolution = max(1e-9, 2 * math.ulp(self._now))


_Events = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.BaseSelector):
    """The system's selector, but for the waiting, which is the loop's."""

    def __init__(self, wait: Callable[[selectors.BaseSelector, float | None], _Events]) -> None:
        self._selector = selectors.DefaultSelector()
        self._wait = wait

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> _Events:
        return self._wait(self._selector, timeout)

    def close(self) -> None:
        self._selector.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()


def _describe_deadlock(tasks: set[Task[Any]]) -> str:
    lines = sorted(f"  {task.get_name()} waits {_place(task)}" for task in tasks)
    return "\n".join(["deadlock: every task waits, and no timer, thread or socket is left to wake one:", *lines])


def _place(task: Task[Any]) -> str:
    stack = task.get_stack()
    if not stack:
        return "in code without a Python frame"
    frame = stack[-1]
    return f"in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
