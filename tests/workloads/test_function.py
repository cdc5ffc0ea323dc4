"""What functions of every kind answer, and what becomes of everything they can raise."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from workloads.calling import workload_of

from oncue import Context
from oncue.core.errors import GiveUpError
from oncue.core.failure import PARSING_ERROR, PROCESSING_ERROR
from oncue.core.outcome import Dead, Retry


async def in_loop(payload: Any) -> Any:
    return payload


def in_thread(payload: Any) -> Any:
    return payload


async def yields_in_loop(payload: Any) -> AsyncIterator[Any]:
    for item in payload:
        yield item


def yields_in_thread(payload: Any) -> Iterator[Any]:
    yield from payload


def gives_coroutine(payload: Any) -> Any:
    return in_loop(payload)


def gives_async_generator(payload: Any) -> Any:
    return yields_in_loop(payload if isinstance(payload, list) else [payload])


class InLoop:
    async def __call__(self, payload: Any) -> Any:
        return payload


class InThread:
    def __call__(self, payload: Any) -> Any:
        return payload


RETURNING = [in_loop, in_thread, gives_coroutine, InLoop(), InThread(), functools.partial(in_loop)]
YIELDING = [yields_in_loop, yields_in_thread, gives_async_generator]
TIMEOUTS = [None, 5.0]


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("function", RETURNING)
async def test_a_value_goes_on_a_list_fans_out_and_none_ends(
    function: Callable[..., Any], timeout: float | None
) -> None:
    async with workload_of(function, timeout=timeout) as call:
        assert await call({"a": 1}) == {"a": 1}
        assert await call(0) == 0
        assert await call([1, None, "x"]) == (1, None, "x")
        assert await call([[1, 2]]) == ([1, 2],)
        assert await call([]) == ()
        assert await call(None) is None


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("function", YIELDING)
async def test_what_is_yielded_fans_out(function: Callable[..., Any], timeout: float | None) -> None:
    async with workload_of(function, timeout=timeout) as call:
        assert await call([1, {"a": None}]) == (1, {"a": None})
        assert await call([]) == ()


async def test_tuples_and_other_iterators_fan_out_as_lists_do() -> None:
    async with workload_of(lambda payload: (*payload,)) as call:
        assert await call([1, 2]) == (1, 2)
    async with workload_of(lambda payload: map(str, payload)) as call:
        assert await call([1, 2]) == ("1", "2")


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_what_is_yielded_is_written_at_once(asynchronous: bool) -> None:
    def reuses(payload: Any) -> Iterator[Any]:
        for payload["n"] in range(2):
            yield payload

    async def reuses_in_loop(payload: Any) -> AsyncIterator[Any]:
        for payload["n"] in range(2):
            yield payload

    async with workload_of(reuses_in_loop if asynchronous else reuses) as call:
        assert await call({}) == ({"n": 0}, {"n": 1})


async def test_a_generator_whose_item_cannot_be_written_is_closed_at_once() -> None:
    ended = []

    async def yields(_payload: Any) -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async with workload_of(yields) as call:
        assert isinstance(await call(), Dead)
        assert ended == [True]


@dataclass
class Photo:
    size: int


@dataclass
class Picky:
    size: int

    def __post_init__(self) -> None:
        raise LookupError("no such size")


async def test_a_payload_that_does_not_fit_is_dead_without_a_call() -> None:
    called = []

    async def takes(photo: Photo) -> None:
        called.append(photo)

    async with workload_of(takes) as call:
        answer = await call({"size": "large"})
        assert isinstance(answer, Dead)
        assert answer.failure.code == PARSING_ERROR
        assert answer.failure.type == "InvalidPayloadError"
        assert "$.size" in answer.failure.message
        assert await call({"size": 3}) is None
    assert called == [Photo(3)]


async def test_a_type_that_raises_while_it_is_made_is_a_failed_attempt() -> None:
    async def takes(payload: Picky) -> None: ...

    async with workload_of(takes) as call:
        answer = await call({"size": 3})
        assert isinstance(answer, Retry)
        assert answer.failure.type == "LookupError"


@pytest.mark.parametrize("value", [object(), [1, object()], float("nan")])
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_result_that_is_not_json_is_dead(value: object, asynchronous: bool) -> None:
    async def gives_in_loop(_payload: Any) -> object:
        return value

    async with workload_of(gives_in_loop if asynchronous else lambda _payload: value) as call:
        answer = await call()
        assert isinstance(answer, Dead)
        assert answer.failure.type == "InvalidResultError"
        assert "cannot be written as JSON" in answer.failure.message


class Own(BaseException):
    pass


def raising(error: BaseException) -> list[Callable[..., Any]]:
    async def in_loop(_payload: Any) -> Any:
        raise error

    async def later_in_loop(_payload: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    async def generator_in_loop(_payload: Any) -> AsyncIterator[Any]:
        yield 1
        raise error

    def in_thread(_payload: Any) -> Any:
        raise error

    def generator_in_thread(_payload: Any) -> Iterator[Any]:
        yield 1
        raise error

    return [in_loop, later_in_loop, generator_in_loop, in_thread, generator_in_thread]


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize(
    "error", [ValueError, Own, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError]
)
@pytest.mark.parametrize("kind", range(5))
async def test_whatever_a_handler_raises_is_a_failed_attempt(
    kind: int, error: type[BaseException], timeout: float | None
) -> None:
    async with workload_of(raising(error("no"))[kind], timeout=timeout) as call:
        answer = await call()
        assert isinstance(answer, Retry)
        assert answer.failure.code == PROCESSING_ERROR
        # Python itself makes a RuntimeError of a StopIteration that leaves a coroutine or generator.
        assert answer.failure.type in (error.__name__, "RuntimeError")
        assert (error is StopIteration) >= (answer.failure.type == "RuntimeError")


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("kind", range(5))
async def test_a_traceback_begins_in_the_handler(kind: int, timeout: float | None) -> None:
    async with workload_of(raising(ValueError("no"))[kind], timeout=timeout) as call:
        lines = (await call()).failure.traceback.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert __file__ in lines[1]
        assert "raise error" in lines[2]
        assert lines[-1] == "ValueError: no"


async def test_signals_on_any_exception_are_heard() -> None:
    def later(context: Context) -> None:
        context.retry(after=7, reason="busy")

    def never(context: Context) -> None:
        context.dead("of no use")

    async def acts(payload: str, context: Context) -> None:
        {"later": later, "never": never}[payload](context)

    async with workload_of(acts) as call:
        answer = await call("later")
        assert isinstance(answer, Retry)
        assert (answer.failure.retry_after, answer.failure.message) == (7, "busy")
        answer = await call("never")
        assert isinstance(answer, Dead)
        assert (answer.failure.type, answer.failure.message) == (GiveUpError.__name__, "of no use")


async def test_every_exception_is_told_as_the_object_it_is() -> None:
    error, told = ValueError("no"), []
    workload = workload_of(raising(error)[0], caught=lambda context, error: told.append((context.actor, error)))
    async with workload as call:
        await call()
    assert told == [("it", error)]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_context_variables_reach_the_handler_and_do_not_leak_out_of_it(
    asynchronous: bool, timeout: float | None
) -> None:
    def sets(payload: str) -> str:
        found = variable.get()
        variable.set(payload)
        return found

    async def sets_in_loop(payload: str) -> str:
        found = sets(payload)
        await asyncio.sleep(0)
        assert variable.get() == payload
        return found

    async with workload_of(sets_in_loop if asynchronous else sets, timeout=timeout) as call:
        variable.set("outer")
        assert await call("one") == "outer"
        assert await call("two") == "outer"
        assert variable.get() == "outer"


async def test_a_synchronous_handler_does_not_block_the_loop() -> None:
    free = threading.Event()

    def waits(_payload: Any) -> str:
        assert free.wait(10)
        return "done"

    async with workload_of(waits) as call:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        free.set()
        assert await task == "done"


async def test_at_most_as_many_threads_run_as_there_are() -> None:
    running, most, lock = 0, 0, threading.Lock()
    barrier = threading.Barrier(3)

    def counts(_payload: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(10)
        with lock:
            running -= 1

    async with workload_of(counts, threads=3) as call:
        await asyncio.gather(*(call() for _ in range(12)))
    assert most == 3
