"""An actor's making, and its handler: what it makes of a message, to the last header."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from oncue import Actor, App, Context, Retry
from oncue.actors import ActorHandler, branch_of
from oncue.core.envelope import decode_envelope
from oncue.core.errors import ConfigError, DuplicateActorError, InvalidValueError
from oncue.core.failure import EXPIRED_ERROR, PARSING_ERROR, PROCESSING_ERROR, Failure
from oncue.core.message import Message, Send
from oncue.core.outcome import Dead, Done
from oncue.core.outcome import Retry as Again
from oncue.core.times import parse_timestamp, timestamp
from oncue.dead import SENT_AT
from oncue.ends import NOWHERE, Ends
from oncue.outgoing import Outgoing
from oncue.workloads.function import FunctionWorkload
from oncue.workloads.signature import read_signature


def handler_of(function: Callable[..., Any], *, ends: Ends = NOWHERE, longest: int | None = None) -> ActorHandler:
    workload = FunctionWorkload(read_signature(function), name="it")
    return ActorHandler("it", workload, Outgoing("asya-"), max_attempts=3, ends=ends, longest=longest)


def message_with(payload: Any = None, *, actors: tuple[str, ...] = ("it",), **fields: Any) -> Message:
    body = {"id": "m", "route": {"actors": actors, "current": 0}, "payload": payload, **fields}
    return Message(json.dumps(body).encode(), "m", {SENT_AT: timestamp()}, "k")


def bodies(sends: tuple[Send, ...]) -> list[Any]:
    return [json.loads(send.message.body) for send in sends]


async def echo(payload: Any) -> Any:
    return payload


async def test_a_result_goes_to_the_next_actor_with_everything_that_is_not_ours() -> None:
    message = message_with(
        {"n": 1},
        actors=("it", "next"),
        headers={"trace": "t"},
        parent_id="p",
        other=[1],
        deadline="2999-01-01T00:00:00Z",
    )
    outcome = await handler_of(echo)(message, 1)
    assert isinstance(outcome, Done)
    (send,) = outcome.sends
    assert (send.queue, send.delay, send.message.id, send.message.key) == ("asya-next", 0.0, "m", "k")
    assert parse_timestamp(send.message.headers[SENT_AT]) is not None
    assert bodies(outcome.sends) == [
        {
            "id": "m",
            "parent_id": "p",
            "route": {"actors": ["it", "next"], "current": 1},
            "headers": {"trace": "t"},
            "payload": {"n": 1},
            "other": [1],
            "deadline": "2999-01-01T00:00:00Z",
        }
    ]


async def test_the_end_of_a_route_that_nobody_waits_for_sends_nothing() -> None:
    assert await handler_of(echo)(message_with(1), 1) == Done()
    assert await handler_of(echo)(message_with(None, actors=("it", "next")), 1) == Done()
    assert await handler_of(echo)(message_with([], actors=("it", "next")), 1) == Done()


async def test_a_fan_out_gives_each_item_its_id_its_parent_and_its_place() -> None:
    outcome = await handler_of(echo)(message_with([7, 8], actors=("it", "next"), parent_id="p"), 1)
    assert isinstance(outcome, Done)
    first, second = bodies(outcome.sends)
    assert (first["id"], first["parent_id"], first["payload"]) == ("m", "p", 7)
    assert (second["id"], second["parent_id"], second["payload"]) == ("m-1", "m", 8)
    assert [first["headers"]["branch"], second["headers"]["branch"]] == [[[0, 2]], [[1, 2]]]


async def test_a_second_fan_out_on_one_route_gives_ids_that_the_first_did_not() -> None:
    ids = set()
    for place, id in ([[0, 2]], "m"), ([[1, 2]], "m-1"):
        fanned = message_with([7, 8], actors=("it", "next"), headers={"branch": place})
        again = Message(fanned.body.replace(b'"m"', f'"{id}"'.encode()), id)
        outcome = await handler_of(echo)(again, 1)
        assert isinstance(outcome, Done)
        ids |= {body["id"] for body in bodies(outcome.sends)}
    assert ids == {"m", "m-0-1", "m-1", "m-1-1"}


async def test_a_header_called_branch_that_is_not_ours_is_replaced_without_a_fuss() -> None:
    for odd in (5, "x", [[3, 2]], [["a", 1]], {"a": 1}):
        assert branch_of({"branch": odd}) == ()
        outcome = await handler_of(echo)(message_with([7], actors=("it", "next"), headers={"branch": odd}), 1)
        assert isinstance(outcome, Done)
        assert bodies(outcome.sends)[0]["headers"]["branch"] == [[0, 1]]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Failed to parse message"),
        (b"\xff", "Failed to parse message"),
        (b'{"route": {"actors": ["it"]}}', "missing required 'id'"),
        (b'{"id": "m", "route": {"actors": ["other"]}}', "Route mismatch"),
        (b'{"id": "m", "route": {"actors": ["it"], "current": 1}}', "Route mismatch"),
    ],
)
async def test_what_is_no_envelope_for_this_actor_is_dead(body: bytes, text: str) -> None:
    outcome = await handler_of(echo)(Message(body, "m"), 1)
    assert isinstance(outcome, Dead)
    assert (outcome.failure.code, outcome.failure.type) == (PARSING_ERROR, "InvalidEnvelopeError")
    assert text in outcome.failure.message
    (told,) = handler_of(echo, ends=Ends("a", "b")).on_dead(Message(b"", "m"), outcome.failure)
    assert told.queue == "b"
    error_envelope = json.loads(told.message.body)
    assert error_envelope["id"] == "m"  # an empty one would go round in error-end for ever
    assert error_envelope["route"] == {"actors": ["error-end"], "current": 0}
    assert error_envelope["payload"] == {"error": outcome.failure.message}
    assert handler_of(echo).on_dead(Message(b"", "m"), outcome.failure) == ()


async def test_a_message_whose_deadline_has_passed_is_dead_before_its_handler_starts() -> None:
    called = []
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    outcome = await handler_of(called.append)(message_with(1, deadline=past), 1)
    assert isinstance(outcome, Dead)
    assert outcome.failure.code == EXPIRED_ERROR
    assert not called


async def test_the_context_tells_about_the_attempt() -> None:
    seen: list[Any] = []

    async def looks(payload: Any, context: Context) -> None:
        seen.append((context.id, context.parent_id, context.actor, context.attempt, context.last_attempt))
        seen.append((dict(context.headers), context.deadline))

    handler = handler_of(looks)
    await handler(message_with(1, parent_id="p", headers={"a": 1}, deadline="2999-01-01T00:00:00Z"), 2)
    assert seen == [("m", "p", "it", 2, False), ({"a": 1}, datetime(2999, 1, 1, tzinfo=UTC))]
    seen.clear()
    await handler(message_with(1), 3)
    assert seen == [("m", None, "it", 3, True), ({}, None)]


async def test_what_is_sent_through_the_context_goes_out_with_the_result_and_under_the_same_ids_again() -> None:
    async def sends(payload: Any, context: Context) -> Any:
        ids.append(context.send("log", {"n": 1}, delay=5, key="x", route=["store"], headers={"extra": 1}))
        ids.append(context.send("log", {"n": 1}))
        ids.append(context.send("audit", None, id="own"))
        return payload

    headers = {"trace": "t", "reply-to": "r", "oncue-call": "1", "branch": [[0, 1]]}
    message = message_with(1, actors=("it", "next"), headers=headers)
    ids: list[str] = []
    outcome = await handler_of(sends)(message, 1)
    assert isinstance(outcome, Done)
    assert [send.queue for send in outcome.sends] == ["asya-log", "asya-log", "asya-audit", "asya-next"]
    assert [send.message.id for send in outcome.sends] == [*ids, "m"]
    assert len(set(ids)) == 3
    assert ids[2] == "own"
    first = outcome.sends[0]
    assert (first.delay, first.message.key) == (5, "x")
    assert bodies(outcome.sends)[0] == {
        "id": ids[0],
        "parent_id": "m",
        "route": {"actors": ["log", "store"], "current": 0},
        "headers": {"trace": "t", "extra": 1},
        "payload": {"n": 1},
    }
    before, ids = ids, []
    await handler_of(sends)(message, 2)
    assert ids == before


async def test_two_actors_of_one_route_send_under_different_ids() -> None:
    def sends(payload: Any, context: Context) -> Any:
        ids.append(context.send("log", 1))

    ids: list[str] = []
    for current in 0, 1:
        await handler_of(sends)(message_with(1, route={"actors": ["it", "it"], "current": current}), 1)
    assert len(set(ids)) == 2


async def test_a_failed_attempt_sends_nothing() -> None:
    async def fails(payload: Any, context: Context) -> None:
        context.send("log", 1)
        raise ValueError("no")

    outcome = await handler_of(fails)(message_with(1), 1)
    assert isinstance(outcome, Again)
    assert outcome.failure.code == PROCESSING_ERROR


async def test_a_context_whose_attempt_is_over_sends_nothing_more_and_says_so() -> None:
    contexts: list[Context] = []

    async def keeps(payload: Any, context: Context) -> None:
        contexts.append(context)

    await handler_of(keeps)(message_with(1), 1)
    with pytest.raises(ConfigError, match="is over"):
        contexts[0].send("log", 1)


async def test_what_cannot_be_sent_fails_where_it_is_sent() -> None:
    async def sends(payload: Any, context: Context) -> None:
        with pytest.raises(InvalidValueError, match="actor name 'a b'"):
            context.send("a b", 1)
        with pytest.raises(InvalidValueError, match="delay -1"):
            context.send("log", 1, delay=-1)
        with pytest.raises(InvalidValueError, match="nan is no JSON number"):
            context.send("log", float("nan"))

    assert await handler_of(sends)(message_with(1), 1) == Done()


def test_an_actor_can_be_called_and_looks_like_its_function() -> None:
    app = App()

    @app.actor
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    assert isinstance(double, Actor)
    assert double(4) == 8
    assert double.__doc__ == "Twice the number."
    assert double.__name__ == double.name == "double"
    assert "double" in repr(double)
    assert __file__ in repr(double)
    assert app.actors == {"double": double}


def test_an_actor_has_the_settings_it_was_given_and_sensible_ones_otherwise() -> None:
    app, retry = App(), Retry(max_attempts=7)
    full = app.actor("full", timeout=3, concurrency=4, retry=retry, lease=5, fifo=True)(echo)
    plain = app.actor(echo)
    sync = app.actor(name="sync")(lambda payload: payload)
    assert (full.name, full.timeout, full.concurrency, full.retry, full.lease, full.fifo) == (
        "full", 3, 4, retry, 5, True,
    )  # fmt: skip
    assert (plain.name, plain.timeout, plain.retry, plain.lease, plain.fifo) == ("echo", None, Retry(), 60.0, False)
    assert (plain.concurrency, sync.concurrency) == (100, 16)
    assert full.spec("p-").name == "p-full"
    assert (full.spec("").lease, full.spec("").fifo) == (5, True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "a b"}, "actor name 'a b'"),
        ({"name": ""}, "has no name"),
        ({"name": "x" * 200}, "actor name 'xxx"),
        ({"name": "x-dlq"}, "dead letters"),
        ({"name": "happy-end"}, "built-in"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"lease": -1}, "lease is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 1.5}, "concurrency is 1.5"),
        ({"concurrency": True}, "concurrency is True"),
        ({"retry": 5}, r"retry is 5, expected a Retry, such as Retry\(max_attempts=5\)"),
    ],
)
def test_a_bad_option_is_refused_with_what_was_expected(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        App().actor(**options)(echo)


def test_a_function_without_a_usable_name_needs_one() -> None:
    with pytest.raises(InvalidValueError, match="'<lambda>'.*give it another with name="):
        App().actor(lambda payload: payload)
    with pytest.raises(InvalidValueError, match="has no name"):
        App().actor(functools.partial(echo))


def test_two_actors_of_one_name_are_refused_with_both_places() -> None:
    app = App()

    @app.actor
    def one(payload): ...

    with pytest.raises(DuplicateActorError, match=rf"'one'.*one \({__file__}:\d+\) and .*two \({__file__}:\d+\)"):

        @app.actor(name="one")
        def two(payload): ...

    assert app.actors["one"] is one


def test_a_failure_is_told_to_the_one_who_waits_and_to_the_end_actor() -> None:
    handler = handler_of(echo, ends=Ends("asya-happy-end", "asya-error-end"))
    failure = Failure("processing_error", "ValueError", "no \ud800", "trace")
    kept, told = handler.on_dead(message_with({"n": 1}, headers={"reply-to": "r", "a": 1}), failure)
    assert (kept.queue, told.queue) == ("asya-error-end", "r")
    details = {"message": "no ?", "type": "ValueError", "traceback": "trace"}
    body = json.loads(kept.message.body)
    assert body["payload"] == {"error": "processing_error", "details": details, "original_payload": {"n": 1}}
    assert body["route"] == {"actors": ["it"], "current": 0}
    answer = decode_envelope(told.message.body)
    assert json.loads(bytes(answer.payload)) == {"error": "processing_error", "details": details}
    assert answer.headers == {"reply-to": "r", "a": 1, "oncue-failed": "processing_error"}


def test_an_error_envelope_that_would_be_too_large_goes_without_the_payload() -> None:
    handler = handler_of(echo, ends=Ends("asya-happy-end", "asya-error-end"), longest=1000)
    failure = Failure("processing_error", "ValueError", "no")
    (kept,) = handler.on_dead(message_with("x" * 950), failure)
    assert "original_payload" not in json.loads(kept.message.body)["payload"]
    (kept,) = handler.on_dead(message_with("x" * 100), failure)
    assert "original_payload" in json.loads(kept.message.body)["payload"]
