"""What the end actors keep, and that no result is lost while their store is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from oncue import App, Retry, Stop
from oncue.core.envelope import Envelope, decode_envelope
from oncue.core.errors import ConnectionLostError, TransportClosedError
from oncue.core.failure import PROCESSING_ERROR, Failure
from oncue.core.message import Message
from oncue.core.outcome import Dead, Done, Release
from oncue.core.settings import load_settings
from oncue.dead import SENT_AT
from oncue.ends import Ends, KeepResult, read_failure
from oncue.outgoing import REPLY_TO, message_of
from oncue.results import Result, Status, open_results
from oncue.testing import run_in_virtual_time
from oncue.transports.memory import MemoryStore, MemoryTransport


class Store:
    """Results in a list; away as often as `away` says."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.kept: list[Result] = []
        self.error: Exception = ConnectionLostError("away")

    async def put(self, result: Result) -> None:
        if self.away:
            self.away -= 1
            raise self.error
        self.kept.append(result)

    async def get(self, id: str) -> Result | None:
        return next((result for result in self.kept if result.id == id), None)

    async def list(
        self, *, status: Status | None = None, limit: int = 100, before: datetime | None = None
    ) -> Sequence[Result]:
        return self.kept

    async def purge(self) -> int:
        return 0

    async def close(self) -> None:
        return None


def keeping_app() -> App:
    app = App("memory:")

    @app.actor
    async def fan(count: int) -> list[int]:
        return list(range(count))

    @app.actor
    async def echo(payload: Any) -> Any:
        return payload

    @app.actor(retry=Retry(max_attempts=1))
    async def fail(payload: Any) -> None:
        raise LookupError("not there")

    return app


def kept_after(store: Store, *sends: dict[str, Any], seconds: float = 1000) -> tuple[list[Result], MemoryTransport]:
    """What is in `store` some time after messages were sent, and the transport."""

    async def run() -> MemoryTransport:
        app, transport = keeping_app(), MemoryTransport(MemoryStore())
        async with app.connected(transport):
            stop = Stop()
            async with asyncio.TaskGroup() as group:
                group.create_task(app.work_with(stop, results=store))
                for send in sends:
                    await app.send(**send)
                await asyncio.sleep(seconds)
                for queue in ("asya-happy-end", "asya-error-end"):
                    assert (await transport.depth(queue)).ready == 0
                    assert await transport.peek(f"{queue}-dlq", limit=1) == []
                stop.now()
        return transport

    return store.kept, run_in_virtual_time(run)


def payload_of(result: Result) -> Any:
    return json.loads(bytes(decode_envelope(result.envelope).payload))


def test_the_end_of_a_route_is_kept_with_the_actor_it_came_from() -> None:
    (result,), _ = kept_after(Store(), {"actor": "echo", "payload": {"n": 1}, "route": ["echo"], "id": "m"})
    assert (result.id, result.status, result.actor, result.failure) == ("m", "succeeded", "echo", None)
    assert payload_of(result) == {"n": 1}


def test_a_route_that_ends_early_has_nothing_as_its_result() -> None:
    (result,), _ = kept_after(Store(), {"actor": "echo", "payload": None, "route": ["fan"], "id": "m"})
    assert (result.id, result.status, result.actor) == ("m", "succeeded", "echo")
    assert payload_of(result) is None


def test_each_branch_of_a_fan_out_is_a_result_of_its_own() -> None:
    results, _ = kept_after(Store(), {"actor": "fan", "payload": 2, "route": ["fan"], "id": "m"})
    assert {(result.id, result.parent_id) for result in results} == {("m", None), ("m-1", "m")}
    results, _ = kept_after(Store(), {"actor": "fan", "payload": 3, "route": ["echo", "fan"], "id": "m"})
    assert {(result.id, result.parent_id, payload_of(result)) for result in results} == {
        ("m", None, None),
        ("m-1", "m", 0),
        ("m-2", "m", 0),
        ("m-2-1", "m-2", 1),
    }


def test_a_failure_is_kept_with_its_reason_and_the_payload_as_it_was() -> None:
    (result,), _ = kept_after(Store(), {"actor": "echo", "payload": {"n": 2}, "route": ["fail"], "id": "m"})
    assert (result.id, result.status, result.actor) == ("m", "failed", "fail")
    assert result.failure is not None
    assert (result.failure.code, result.failure.type, result.failure.message) == (
        PROCESSING_ERROR,
        "LookupError",
        "not there",
    )
    assert "raise LookupError" in result.failure.traceback
    assert payload_of(result)["original_payload"] == {"n": 2}


def test_no_result_is_lost_however_long_the_store_is_away() -> None:
    sends = [{"actor": "echo", "payload": number, "id": f"m{number}"} for number in range(20)]
    sends += [{"actor": "fail", "payload": number, "id": f"f{number}"} for number in range(20)]
    results, _ = kept_after(Store(away=40 * 12), *sends)
    assert {result.id for result in results} == {send["id"] for send in sends}
    assert len(results) == 40


async def test_a_result_that_comes_twice_is_the_same_both_times() -> None:
    store = Store()
    keep = KeepResult(store, "succeeded")
    message = Message(b'{"id":"m","route":{"actors":["a"],"current":1}}', "m", {SENT_AT: "2026-01-02T03:04:05.678Z"})
    assert await keep(message, 1) == Done()
    assert await keep(message, 2) == Done()
    assert store.kept[0] == store.kept[1]
    assert store.kept[0].finished_at == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


async def test_an_end_actor_lets_go_of_a_result_when_its_store_is_closed_and_sets_aside_what_is_none() -> None:
    store = Store(away=1)
    store.error = TransportClosedError()
    keep = KeepResult(store, "succeeded")
    assert await keep(Message(b'{"id":"m","route":{"actors":["a"],"current":1}}', "m"), 1) == Release()
    assert isinstance(await keep(Message(b"no envelope", "m"), 1), Dead)


@pytest.mark.parametrize("payload", [b"5", b"{}", b'{"error": 5}', b'"\xff"'])
def test_an_error_envelope_of_any_form_is_a_failure(payload: bytes) -> None:
    assert read_failure(Raw(payload)).type == "UnknownError"


def test_an_error_envelope_of_another_program_is_read() -> None:
    failure = read_failure(Raw(b'{"error": "Runtime timeout exceeded after 2s", "original_payload": 1}'))
    assert (failure.code, failure.type) == ("timeout_error", "Runtime timeout exceeded after 2s")


async def test_with_the_setting_results_are_in_the_store_that_it_names(tmp_path: Path) -> None:
    app = keeping_app()
    url = f"sqlite:///{tmp_path}/results.db"
    app.settings = load_settings(environ={}, options={"url": "memory:", "results": url})
    async with app.working():
        assert await app.call("echo", "x", id="m", timeout=30) == "x"
    store = open_results(url)
    try:
        result = await store.get("m")
        assert result is not None
        assert payload_of(result) == "x"
    finally:
        await store.close()


def test_who_waits_is_told_once_whether_or_not_results_are_kept() -> None:
    headers = {REPLY_TO: "waiting", "trace": 1}
    envelope = Envelope.new(["a"], b"1", id="m", headers=headers)
    message = message_of(envelope)
    kept, replies = Ends("happy", "error").reached([envelope], message)
    assert [(send.queue, decode_envelope(send.message.body).headers) for send in kept] == [("happy", {"trace": 1})]
    assert [(send.queue, decode_envelope(send.message.body).headers) for send in replies] == [("waiting", headers)]
    told, answer = Ends("happy", "error").failed(envelope, Failure("code", "Type", "text"), message, None)
    assert (told.queue, decode_envelope(told.message.body).headers) == ("error", {"trace": 1})
    assert answer.queue == "waiting"
    left_to_others = Ends("happy", "error", answers=False).reached([envelope], message)
    assert decode_envelope(left_to_others[0][0].message.body).headers == headers
    assert left_to_others[1] == ()
