"""Tests of the AMQP client run on both event loops, and wait for what has to happen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

import pytest
import uvloop

SOON = 15.0
"""Seconds that a test waits for what has to happen at once, before it fails."""

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Result = TypeVar("Result")


async def soon(awaited: Awaitable[Result]) -> Result:
    async with asyncio.timeout(SOON):
        return await awaited


def on_each_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @wraps(test)
    def run(loop: str, **named: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**named))

    asked = signature(test)
    parameters = [Parameter("loop", Parameter.KEYWORD_ONLY)]
    parameters += [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in asked.parameters.values()]
    del run.__wrapped__
    run.__signature__ = asked.replace(parameters=parameters)
    return pytest.mark.parametrize("loop", list(LOOPS))(run)
