"""A runtime as an actor's workload: what it answers and sends becomes what a function of the library would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from runtime.beside import NEWEST, Beside

from oncue.context import Context
from oncue.core.envelope import Envelope
from oncue.core.errors import ConfigError
from oncue.core.outcome import Dead, Retry
from oncue.outgoing import Outgoing
from oncue.workloads import Answer, Workload
from oncue.workloads.socket import SocketWorkload


def attempt(payload: bytes, **fields: Any) -> tuple[Envelope, Context]:
    envelope = Envelope.new(["a", "b"], payload, id="m-1", **fields)
    compose = Outgoing("asya-").compose_within
    return envelope, Context(envelope, "a", 2, last_attempt=True, compose=compose)


async def answer(handler: str, payload: bytes) -> Answer:
    async with Beside(NEWEST, f"handlers.{handler}") as beside:
        workload: Workload = SocketWorkload(await beside.connect())
        try:
            return await workload.answer(*attempt(payload))
        finally:
            await workload.close()
            await workload.close()


async def test_results_are_answers() -> None:
    assert await answer("echo", b'{"x":1}') == Raw(b'{"x":1}')
    assert await answer("fan", b"3") == (Raw(b"0"), Raw(b"1"), Raw(b"2"))
    assert await answer("nothing", b"1") is None


async def test_failures_are_outcomes() -> None:
    failed = await answer("fail", b'"wait"')
    assert isinstance(failed, Retry)
    assert (failed.failure.type, failed.failure.retry_after) == ("Wait", 2.5)
    dead = await answer("fail", b'"useless"')
    assert isinstance(dead, Dead)
    crashed = await answer("act", b'"segfault"')
    assert isinstance(crashed, Retry)
    assert crashed.failure.code == "crash_error"
    assert isinstance(await answer("unwritable", b"1"), Dead)


async def test_the_context_is_told_and_its_sends_go_out_with_the_answer(python: Path) -> None:
    async with Beside(python, "handlers.control") as beside:
        workload = SocketWorkload(await beside.connect(), handler_timeout=30)
        envelope, context = attempt(b'"Ada"', headers={"trace": "t"})
        assert isinstance(await workload.answer(envelope, context), tuple)
        mail, log = context.end()
        assert (mail.queue, log.queue) == ("asya-mail", "asya-log")
        assert b'"trace":"t"' in mail.message.body
        await workload.close()
        lost = await workload.answer(*attempt(b"1"))
        assert isinstance(lost, Retry)


async def test_envelope_mode_is_no_workload() -> None:
    settings = {"ONCUE_HANDLER_MODE": "envelope"}
    async with Beside(NEWEST, "handlers.advance", **settings) as beside, await beside.connect() as client:
        with pytest.raises(ConfigError, match="envelope mode"):
            SocketWorkload(client)
