"""What a message is checked for, and what the answers are, by Asya's protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runtime.beside import NEWEST, OLDEST, Beside

ROUTE = {"actors": ["a", "b"], "current": 0}

# What arrives, and Asya's text for it.
REFUSED: list[tuple[Any, str]] = [
    ({"route": ROUTE}, "Missing required field 'payload' in envelope"),
    ({"payload": 1}, "Missing required field 'route' in envelope"),
    ({"payload": 1, "route": []}, "Field 'route' must be a dict"),
    ({"payload": 1, "route": {"current": 0}}, "Missing required field 'actors' in route"),
    ({"payload": 1, "route": {"actors": "a"}}, "Field 'route.actors' must be a list"),
    ({"payload": 1, "route": {"actors": ["a"], "current": "0"}}, "Field 'route.current' must be an integer"),
    ({"payload": 1, "route": {"actors": ["a"], "current": True}}, "Field 'route.current' must be an integer"),
    ({"payload": 1, "route": {"actors": ["a"], "current": None}}, "Field 'route.current' must be an integer"),
    ({"payload": 1, "route": {"actors": [], "current": 0}}, "Field 'route.actors' cannot be empty"),
    ({"payload": 1, "route": {"actors": ["a", 1]}}, "Field 'route.actors[1]' must be a string"),
    ({"payload": 1, "route": {"actors": ["a"], "current": 2}}, "Invalid route.current=2: out of bounds for actors of length 1"),
    ({"payload": 1, "route": {"actors": ["a"], "current": -1}}, "Invalid route.current=-1: out of bounds for actors of length 1"),
    ({"payload": 1, "route": ROUTE, "headers": []}, "Field 'headers' must be a dict"),
    ({"payload": 1, "route": ROUTE, "id": 7}, "Field 'id' must be a string"),
    ([1, 2], "Missing required field 'payload' in envelope"),
    ("payload", "Missing required field 'payload' in envelope"),
    (7, "Missing required field 'payload' in envelope"),
    (None, "Missing required field 'payload' in envelope"),
]  # fmt: skip

NOT_JSON = [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b'{"payload": NaN}', b"[" * 200_000, b"{} {}", b"9" * 6000 + b"x"]


async def test_a_message_that_is_none_is_refused_with_asyas_text(python: Path) -> None:
    async with Beside(python, "handlers.echo") as beside:
        for message, text in REFUSED:
            (item,) = await beside.raw(json.dumps(message).encode())
            assert (item["error"], item["details"]["message"]) == ("msg_parsing_error", text)
        for body in NOT_JSON:
            (item,) = await beside.raw(body)
            assert item["error"] == "msg_parsing_error", body[:20]
        assert await beside.send(1) == [{"payload": 1, "route": {"actors": ["a", "b"], "current": 1}}]


async def test_what_may_be_absent_is_taken_for_its_default(python: Path) -> None:
    async with Beside(python, "handlers.echo") as beside:
        (item,) = await beside.raw(b'{"payload": 0, "route": {"actors": ["a"], "metadata": {"x": 1}}}')
        assert item == {"payload": 0, "route": {"actors": ["a"], "current": 1, "metadata": {"x": 1}}}
        (item,) = await beside.send(1, headers={"trace": "t"}, deadline="soon")
        assert item["headers"] == {"trace": "t"}


RESULTS: list[tuple[str, Any, list[Any]]] = [
    ("echo", {"ü": "é\u2028"}, [{"ü": "é\u2028"}]),
    ("nothing", 1, []),
    ("empty", 1, []),
    ("fan", 3, [0, 1, 2]),
    ("pair", 7, [7, 7]),
    ("count", 3, [0, 1, 2]),
    ("plain_that_awaits", "Bob", ["Hello, Bob!"]),
    ("plain_that_awaits_many", 2, [0, 1]),
    ("surrogate", 1, ["\ud800"]),
    ("produce", 3 * 2**20, ["x" * 3 * 2**20]),
]


async def test_a_result_of_each_kind_is_answered(python: Path) -> None:
    async with Beside(python, "handlers.call_by_name") as beside:
        for handler, payload, results in RESULTS:
            answer = await beside.send([handler, payload])
            assert [item["payload"] for item in answer] == results
            assert all(item["route"]["current"] == 1 for item in answer)


@pytest.mark.parametrize(
    ("handler", "payload", "results"), [("greet", "Ada", ["Hello, Ada!"]), ("count_in_loop", 2, [0, 1])]
)
async def test_async_handlers_are_answered(python: Path, handler: str, payload: Any, results: list[Any]) -> None:
    async with Beside(python, f"handlers.{handler}") as beside:
        assert [item["payload"] for item in await beside.send(payload)] == results


@pytest.mark.parametrize("handler", ["unwritable", "not_a_number", "circular"])
async def test_a_result_that_is_not_json_is_answered_as_an_error(handler: str) -> None:
    async with Beside(OLDEST, f"handlers.{handler}") as beside:
        code, details = await beside.fault(1)
        assert code == "processing_error"
        assert details["type"] == "InvalidResultError"
        assert details["dead"] is True
        assert "cannot be written as JSON" in details["message"]


async def test_a_result_over_the_limit_is_answered_as_an_error() -> None:
    async with Beside(NEWEST, "handlers.huge", ONCUE_FRAME_LIMIT="100k") as beside:
        assert len((await beside.send(50_000))[0]["payload"]) == 50_000
        code, details = await beside.fault(100_000)
        assert code == "processing_error"
        assert "over the limit" in details["message"]


async def test_a_generator_that_fails_answers_with_its_error_alone(python: Path) -> None:
    async with Beside(python, "handlers.count_then_fail") as beside:
        code, details = await beside.fault(2)
        assert (code, details["message"]) == ("processing_error", "after 2")


async def test_an_exception_is_told_whole_and_its_wishes_are_read(python: Path) -> None:
    async with Beside(python, "handlers.fail") as beside:
        code, details = await beside.fault("key")
        assert code == "processing_error"
        assert (details["type"], details["message"]) == ("KeyError", "'key'")
        assert details["traceback"].startswith("Traceback (most recent call last):\n  File ")
        assert "in fail" in details["traceback"]
        assert "runtime.py" not in details["traceback"]
        assert details["bases"] == ["LookupError", "Exception", "BaseException"]
        assert (await beside.fault("wait"))[1]["retry_after"] == 2.5
        assert (await beside.fault("useless"))[1]["dead"] is True
        assert (await beside.fault("mute"))[1]["message"] == "<Mute whose text raised ValueError>"
        assert len((await beside.fault("long"))[1]["message"]) < 20_000
        assert (await beside.fault("exit"))[1]["type"] == "SystemExit"
        assert (await beside.fault("interrupt"))[1]["type"] == "KeyboardInterrupt"
        assert (await beside.fault("recursion"))[1]["type"] == "RecursionError"
        assert (await beside.fault("memory"))[0] == "oom_error"
        assert "has ended" not in beside.text


async def test_no_payload_and_no_error_text_is_in_the_log(python: Path) -> None:
    async with Beside(python, "handlers.fail", ONCUE_LOG_LEVEL="debug") as beside:
        await beside.fault("my secret")
        await beside.raw(b'{"payload": "my secret", "route": 1}')
        await beside.raw(b"my secret")
        assert "the handler failed: KeyError at " in beside.text
        assert "secret" not in beside.text


async def test_what_users_print_and_log_is_shown(python: Path) -> None:
    async with Beside(python, "handlers.logs") as beside:
        await beside.send(1)
        await beside.said("printed")
        await beside.said("users - INFO - users' lines are shown")


async def test_state_of_a_class_is_kept(python: Path) -> None:
    async with Beside(python, "handlers.Model.process") as beside:
        assert [(await beside.send(None))[0]["payload"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(("handler", "result"), [("Bare", "bare"), ("Open", "open")])
async def test_a_class_needs_no_constructor_of_its_own(python: Path, handler: str, result: str) -> None:
    async with Beside(python, f"handlers.{handler}.process") as beside:
        assert (await beside.send(None))[0]["payload"] == result


async def test_without_validation_everything_reaches_the_handler(python: Path) -> None:
    async with Beside(python, "handlers.echo", ASYA_ENABLE_VALIDATION="false") as beside:
        (item,) = await beside.raw(b'{"payload": 5, "route": {"current": 3}}')
        assert item == {"payload": 5, "route": {"current": 4}}
        (item,) = await beside.raw(b'{"route": {"current": 3}}')
        assert (item["error"], item["details"]["type"]) == ("processing_error", "KeyError")
        (item,) = await beside.raw(b"7")
        assert item["error"] == "processing_error"


# Envelope mode


async def test_an_envelope_may_be_changed_in_place(python: Path) -> None:
    async with Beside(python, "handlers.advance", ASYA_HANDLER_MODE="Envelope") as beside:
        (item,) = await beside.send(1, headers={"x": "y"}, strange=[1])
        assert item == {
            "id": "m-1", "route": {"actors": ["a", "b"], "current": 1}, "payload": 1, "headers": {"x": "y"}, "strange": [1]
        }  # fmt: skip
        (item,) = await beside.send(1, route={"actors": ["a"], "current": 0})
        assert item["route"] == {"actors": ["a"], "current": 1}


@pytest.mark.parametrize("handler", ["replace_route", "rewrite_route"])
async def test_a_route_changed_in_place_is_checked_against_what_came(python: Path, handler: str) -> None:
    async with Beside(python, f"handlers.{handler}", ASYA_HANDLER_MODE="envelope") as beside:
        code, details = await beside.fault(1)
        assert code == "processing_error"
        assert details["message"] == (
            "Invalid output envelope[0/1]: Route modification error: already-processed actors cannot be erased. Input "
            "route had ['a'] (actors 0-0), but output route starts with ['z']. Runtimes can add future actors but must "
            "preserve all actors up to current."
        )


OUTPUTS: list[tuple[Any, str]] = [
    ({"route": ROUTE}, "Missing required field 'payload' in envelope"),
    (5, "Missing required field 'payload' in envelope"),
    ({"payload": 1, "route": {"actors": ["a"], "current": 5}}, "Invalid route.current=5: out of bounds for actors of length 1"),
    ({"payload": 1, "route": {"actors": ["a"]}, "headers": 1}, "Field 'headers' must be a dict"),
    ({"payload": 1, "route": {"actors": ["a"]}, "id": 1}, "Field 'id' must be a string"),
]  # fmt: skip


async def test_an_envelope_that_comes_out_is_checked_like_one_that_comes_in(python: Path) -> None:
    async with Beside(python, "handlers.return_as_told", ASYA_HANDLER_MODE="envelope") as beside:
        for output, text in OUTPUTS:
            code, details = await beside.fault(output)
            assert (code, details["message"]) == ("processing_error", f"Invalid output envelope[0/1]: {text}")
        good = {"payload": 1, "route": {"actors": ["a", "new"], "current": 1}}
        code, details = await beside.fault([good, {}])
        assert details["message"] == "Invalid output envelope[1/2]: Missing required field 'payload' in envelope"
        assert await beside.send([good, good]) == [good, good]
        assert await beside.send(None) == []


async def test_an_envelope_can_be_split(python: Path) -> None:
    async with Beside(python, "handlers.split_envelope", ASYA_HANDLER_MODE="envelope") as beside:
        answer = await beside.send([1, 2])
        assert [(item["payload"], item["route"]["current"]) for item in answer] == [(1, 1), (2, 1)]
