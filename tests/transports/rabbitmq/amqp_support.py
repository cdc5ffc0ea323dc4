"""Tests of the AMQP client run on both event loops, and wait for what has to happen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, settings

SOON = 15.0
"""Seconds that a test waits for what has to happen at once, before it fails."""

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Result = TypeVar("Result")

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For tests of many cases: the time that others take from the machine is no fault of them."""


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
