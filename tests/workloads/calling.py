"""Calls a function workload as an actor's handler does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Raw

from oncue.context import Context
from oncue.core.envelope import Envelope
from oncue.outgoing import Outgoing
from oncue.workloads import Answer
from oncue.workloads.function import FunctionWorkload
from oncue.workloads.signature import read_signature

Call = Callable[..., Any]


def context_of(envelope: Envelope, attempt: int = 1) -> Context:
    compose = Outgoing("asya-").compose_within
    return Context(envelope, "it", attempt, last_attempt=attempt >= 3, compose=compose)


@asynccontextmanager
async def workload_of(function: Callable[..., Any], **options: Any) -> AsyncIterator[Call]:
    """The block can call `function` with a payload; it gets the answer, results as values."""
    workload = FunctionWorkload(read_signature(function), name="it", **options)

    async def call(payload: Any = None) -> Any:
        envelope = Envelope.new(["it"], msgspec.json.encode(payload))
        return plain(await workload.answer(envelope, context_of(envelope)))

    try:
        yield call
    finally:
        await workload.close()


def plain(answer: Answer) -> Any:
    if isinstance(answer, Raw):
        return msgspec.json.decode(answer)
    if isinstance(answer, tuple):
        return tuple(msgspec.json.decode(item) for item in answer)
    return answer
