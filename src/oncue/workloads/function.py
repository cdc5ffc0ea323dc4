"""A Python function as a workload: async or not, returning or yielding, in the event loop or in threads."""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio import CancelledError, Future, Task
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from oncue.context import Context
from oncue.core.envelope import Envelope
from oncue.core.errors import InvalidPayloadError, InvalidResultError
from oncue.core.failure import PARSING_ERROR, PROCESSING_ERROR, TIMEOUT_ERROR, Failure
from oncue.core.outcome import Dead, Retry
from oncue.core.times import format_duration
from oncue.workloads import Answer
from oncue.workloads.signature import Signature
from oncue.workloads.threads import Job, Threads
from oncue.workloads.values import reader, write

_UNWINDING = 3.0
"""Seconds that a cancelled handler has to end before it is left behind."""

_PLAIN = frozenset({type(None), bool, int, float, str, dict})
"""The usual types of results, which need no closer look."""

T = TypeVar("T")

Caught = Callable[[Context, BaseException], None]
"""Told of every exception that a handler raised, as the object it is. Its traceback will begin in the handler."""


class _Raised:
    """What user code raised, carried as a value so that it is never taken for an exception of the machinery."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Unfinished:
    """What a call in a thread returned and only the event loop can finish."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _TimedOut(_Raised):
    """That a handler did not end in time; `where` is where it was, as a traceback prints it."""

    __slots__ = ("where",)

    def __init__(self, limit: float, where: str = "") -> None:
        super().__init__(TimeoutError(f"not finished within {format_duration(limit)}"))
        self.where = where


class FunctionWorkload:
    """Calls a function with each payload.

    A synchronous function runs in one of `threads` threads. After `timeout` seconds an attempt has failed: an `async`
    handler is cancelled, a thread cannot be and is left behind. `abandoned` is told how many are left behind in all,
    `caught` of every exception.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        name: str,
        timeout: float | None = None,
        threads: int = 1,
        abandoned: Callable[[int], None] = lambda _count: None,
        caught: Caught | None = None,
    ) -> None:
        self._bind = signature.bind
        self._read = reader(signature.payload)
        self._timeout = timeout
        self._threads = None if signature.in_loop else Threads(threads, f"oncue-{name}")
        self._left: set[Task[Any]] = set()
        self._abandoned = abandoned
        self._caught = caught

    async def answer(self, envelope: Envelope, context: Context) -> Answer:
        try:
            payload = self._read(envelope.payload)
        except InvalidPayloadError as error:
            return Dead(Failure(PARSING_ERROR, type(error).__name__, str(error), final=True))
        except Exception as error:  # the annotated type's own code failed
            return self._failed(context, error)
        surroundings = contextvars.copy_context()
        if self._threads is None:
            rest = self._run(payload, context)
        else:
            answer = await self._in_thread(self._threads, surroundings, payload, context)
            if not isinstance(answer, _Unfinished):
                return self._told(context, answer)
            rest = self._finish(answer.value)
        if self._timeout is None:
            return self._told(context, await _within(surroundings, rest))
        return self._told(context, await self._timed(surroundings, rest, self._timeout))

    async def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for task in self._left:
            task.cancel()
        if self._left:
            await asyncio.wait(self._left, timeout=_UNWINDING)

    # In the event loop

    async def _run(self, payload: Any, context: Context) -> Answer | _Raised:
        try:
            return await _collect(self._bind(payload, context))
        except BaseException as error:
            return _Raised(error)

    async def _finish(self, value: Any) -> Answer | _Raised:
        try:
            return await _collect(value)
        except BaseException as error:
            return _Raised(error)

    async def _timed(
        self, surroundings: contextvars.Context, work: Coroutine[Any, Any, Answer | _Raised], limit: float
    ) -> Answer | _Raised:
        """As `_within`, but no longer than `limit` seconds, whether or not the handler lets itself be cancelled."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(work, context=surroundings)
        woken: Future[None] = loop.create_future()
        wake = partial(_wake, woken)
        timer = loop.call_later(limit, wake)
        task.add_done_callback(wake)
        try:
            await woken
        except CancelledError:
            await self._unwind(task)
            raise
        finally:
            timer.cancel()
        if task.done() and not task.cancelled():
            return task.result()
        await self._unwind(task)
        return _TimedOut(limit, _where(task))

    async def _unwind(self, task: Task[Any]) -> None:
        """Cancel `task` and wait for its end, but not for ever."""
        task.cancel()
        await asyncio.wait({task}, timeout=_UNWINDING)
        if not task.done():
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            self._tell_abandoned()

    # In threads

    async def _in_thread(
        self, threads: Threads, surroundings: contextvars.Context, payload: Any, context: Context
    ) -> Answer | _Raised | _Unfinished:
        job = Job(partial(surroundings.run, self._call, payload, context))
        future: Future[Answer | _Raised | _Unfinished] = asyncio.get_running_loop().run_in_executor(threads, job)
        try:
            if self._timeout is None or await _ended(future, job, self._timeout):
                return await future
        except CancelledError:
            if not _cancelled():
                return _Raised(asyncio.CancelledError())
            future.cancel()
            self._abandon(threads, job)
            raise
        where = job.where()
        future.cancel()
        self._abandon(threads, job)
        return _TimedOut(self._timeout, where)

    def _call(self, payload: Any, context: Context) -> Answer | _Raised | _Unfinished:
        """Called in the thread. Results are written there too, as they come: what is yielded may change afterwards."""
        try:
            value = self._bind(payload, context)
            if isinstance(value, Awaitable | AsyncIterator):
                return _Unfinished(value)
            return _written(value)
        except BaseException as error:
            return _Raised(error)

    def _abandon(self, threads: Threads, job: Job) -> None:
        if threads.abandon(job):
            self._tell_abandoned()

    def _tell_abandoned(self) -> None:
        self._abandoned(len(self._left) + (self._threads.abandoned if self._threads is not None else 0))

    # What it came to

    def _told(self, context: Context, answer: Answer | _Raised) -> Answer:
        if not isinstance(answer, _Raised):
            return answer
        error = answer.error
        if isinstance(error, CancelledError) and _cancelled():
            raise error
        if isinstance(answer, _TimedOut):
            self._tell_caught(context, error)
            failure = _describe(error, TIMEOUT_ERROR)
            return Retry(msgspec.structs.replace(failure, traceback=answer.where))
        return self._failed(context, error)

    def _tell_caught(self, context: Context, error: BaseException) -> None:
        if self._caught is not None:
            self._caught(context, error)

    def _failed(self, context: Context, error: BaseException) -> Retry | Dead:
        self._tell_caught(context, error)
        failure = _describe(error)
        if failure.final or isinstance(error, InvalidResultError):
            return Dead(failure)
        return Retry(failure)


def _where(task: Task[Any]) -> str:
    """Where a handler was when it was cancelled, as a traceback prints it."""
    raised = task.result() if task.done() and not task.cancelled() else None
    if not isinstance(raised, _Raised):
        return ""
    return _describe(raised.error).traceback


async def _ended(future: Future[Any], job: Job, limit: float) -> bool:
    """Whether `job` ended within `limit` seconds of its beginning. Waiting for a free thread does not count."""
    left = limit
    while True:
        await asyncio.wait({future}, timeout=left)
        if future.done():
            return True
        left = limit if job.began is None else limit - job.running_for()
        if left <= 0.001:
            return False


async def _collect(value: Any) -> Answer:
    """What a call returned, once everything in it has come."""
    if type(value) is types.CoroutineType or isinstance(value, Awaitable):
        value = await value
    if type(value) not in _PLAIN and isinstance(value, AsyncIterator):
        return await _items(value)
    return _written(value)


async def _items(values: AsyncIterator[Any]) -> Answer:
    try:
        return tuple([_item(value) async for value in values])
    finally:
        close = getattr(values, "aclose", None)  # what it has open must not stay open until it is collected
        if close is not None:
            await close()


def _written(value: Any) -> Answer:
    if value is None:
        return None
    if type(value) in _PLAIN:
        return write(value, "the result", InvalidResultError)
    if isinstance(value, list | tuple | Iterator):
        return tuple(map(_item, value))
    return write(value, "the result", InvalidResultError)


def _item(value: Any) -> Raw:
    return write(value, "an item of the result", InvalidResultError)


@types.coroutine
def _within(surroundings: contextvars.Context, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await `work` in context variables of its own, at the cost of two calls: a task for each message would cost more."""
    run = surroundings.run
    step: Callable[[Any], Any] = work.send
    argument: Any = None
    while True:
        try:
            waits_for = run(step, argument)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            argument = yield waits_for
            step = work.send
        except GeneratorExit:
            run(work.close)
            raise
        except BaseException as error:
            step, argument = work.throw, error


def _cancelled() -> bool:
    """Whether the running task was told to end, as opposed to a handler that raised `CancelledError` itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _wake(woken: Future[None], _task: object = None) -> None:
    if not woken.done():
        woken.set_result(None)


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback of `error` from the first frame on that is not OnCue's."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("oncue."):
        frames = frames.tb_next
    return frames


def _describe(error: BaseException, code: str = PROCESSING_ERROR) -> Failure:
    return Failure.from_exception(error.with_traceback(users_frames(error)), code=code)
