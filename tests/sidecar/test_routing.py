"""What a sidecar makes of messages and answers, row by row as Asya's does, before our runtime and before Asya's."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from sidecar.pods import ASYAS, HERE, OURS, Pod, Queues, envelope, pod, running

from oncue.core.failure import Failure
from oncue.ends import read_failure

RUNTIMES = pytest.mark.parametrize("runtime", [OURS, ASYAS], ids=["ours", "asyas"])


@pytest.fixture(params=[OURS, ASYAS], ids=["ours", "asyas"])
def work(request: pytest.FixtureRequest, url: str) -> Iterator[Pod]:
    with running(url, runtime=request.param) as found:
        yield found


def test_messages_that_are_none_end_in_error_end_with_asyas_texts_and_in_the_dead_letters(
    url: str, queues: Queues
) -> None:
    rows: list[tuple[Any, str, dict[str, Any], Any]] = [
        (b"{no json", "Failed to parse message: ", {"actors": ["error-end"], "current": 0}, None),
        (
            {"id": 5, "route": {"actors": ["a"], "current": 0}, "payload": [1]},
            "Failed to parse message: ",
            {"actors": ["error-end"], "current": 0},
            [1],
        ),
        (
            {"id": "m", "route": {"actors": ["a"], "current": "0"}, "payload": 12345678901234567890},
            "Failed to parse message: ",
            {"actors": ["error-end"], "current": 0},
            12345678901234567890,
        ),
        (
            {"route": {"actors": ["a"], "current": 0}, "payload": 1},
            "Envelope missing required 'id' field",
            {"actors": ["a"], "current": 0},
            1,
        ),
        (
            {"id": "", "route": {"actors": ["a", "b"], "current": 1}, "payload": 1},
            "Envelope missing required 'id' field",
            {"actors": ["a", "b"], "current": 1},
            1,
        ),
        (
            envelope("w", 1, ["b"], parent_id="p", headers={"h": 1}),
            "Route mismatch: message routed to wrong actor (expected: a, actual: b)",
            {"actors": ["b"], "current": 0},
            1,
        ),
        (
            envelope("x", None, ["a"], 7),
            "Route mismatch: message routed to wrong actor (expected: a, actual: )",
            {"actors": ["a"], "current": 7},
            None,
        ),
    ]
    with running(url) as work:
        for number, (body, text, route, original) in enumerate(rows):
            queues.send("a", body)
            (told,) = queues.take("error-end", 1)
            assert told["id"], number
            assert told["route"] == route, number
            error = told["payload"]["error"]
            assert error == text or (text.endswith(": ") and error.startswith(text)), number
            assert told["payload"].get("original_payload") == original, number
            assert "details" not in told["payload"], number
            (letter,) = queues.messages("a-dlq", 1)
            assert letter.body == (body if isinstance(body, bytes) else json.dumps(body).encode()), number
        failed = {name: value for name, value in work.metrics().items() if "messages_failed" in name}
    assert failed == {
        'asya_actor_messages_failed_total{queue="a",reason="parse_error"}': 3,
        'asya_actor_messages_failed_total{queue="a",reason="validation_error"}': 2,
        'asya_actor_messages_failed_total{queue="a",reason="route_mismatch"}': 2,
    }


def test_a_result_goes_to_the_next_actor_with_all_that_came_with_its_message(work: Pod, queues: Queues) -> None:
    more = {"parent_id": "p", "headers": {"trace": "t"}, "deadline": "2999-01-01T00:00:00Z", "colour": "red"}
    sent = envelope("m", {"n": 1}, ["a", "b"], **more)
    sent["route"]["metadata"] = {"job": 7}
    queues.make("b")
    queues.send("a", sent)
    (told,) = queues.take("b", 1)
    sent["route"]["current"] = 1
    assert told == sent


def test_a_finished_route_goes_to_happy_end(work: Pod, queues: Queues) -> None:
    queues.send("a", envelope("m", {"n": 1}, headers={"trace": "t"}))
    assert queues.take("happy-end", 1) == [envelope("m", {"n": 1}, current=1, headers={"trace": "t"})]


@pytest.mark.parametrize("what", ["nothing", "none_of_them"])
def test_without_a_result_the_envelope_goes_to_happy_end_as_it_came(work: Pod, queues: Queues, what: str) -> None:
    sent = envelope("m", {"do": what}, ["a", "b"], headers={"trace": "t"}, colour="red")
    queues.send("a", sent)
    assert queues.take("happy-end", 1) == [sent]
    assert work.metrics()['asya_actor_messages_processed_total{queue="a",status="empty_response"}'] == 1


def test_a_fan_out_has_asyas_ids_and_every_part_says_where_it_belongs(work: Pod, queues: Queues) -> None:
    queues.make("b")
    queues.send("a", envelope("m", {"do": "fan", "n": 3}, ["a", "b"], headers={"trace": "t"}))
    told = sorted(queues.take("b", 3), key=lambda each: each["payload"])
    assert [each["id"] for each in told] == ["m", "m-1", "m-2"]
    assert [each.get("parent_id") for each in told] == [None, "m", "m"]
    assert [each["headers"] for each in told] == [{"trace": "t", "branch": [[index, 3]]} for index in range(3)]


def test_a_list_of_one_is_a_single_result(work: Pod, queues: Queues) -> None:
    queues.send("a", envelope("m", {"do": "fan", "n": 1}))
    assert queues.take("happy-end", 1)[0]["id"] == "m"


def test_a_handlers_exception_is_told_to_error_end_and_the_message_kept(work: Pod, queues: Queues) -> None:
    sent = envelope("m", {"do": "fail", "text": "no such thing"}, ["a", "b"], parent_id="p", headers={"trace": "t"})
    queues.send("a", sent)
    (told,) = queues.take("error-end", 1)
    payload = told.pop("payload")
    assert told == {name: sent[name] for name in ("id", "parent_id", "route", "headers")}
    assert payload["error"] == "processing_error"
    assert payload["original_payload"] == sent["payload"]
    assert payload["details"]["message"] == "no such thing"
    assert payload["details"]["type"] == "ValueError"
    assert "jobs.py" in payload["details"]["traceback"]
    (letter,) = queues.messages("a-dlq", 1)
    assert json.loads(letter.body) == sent
    assert work.metrics()['asya_actor_messages_failed_total{queue="a",reason="runtime_error"}'] == 1


@RUNTIMES
def test_a_call_that_takes_too_long_is_told_in_asyas_words(url: str, queues: Queues, runtime: Path) -> None:
    with running(url, runtime=runtime, ASYA_RUNTIME_TIMEOUT="300ms") as work:
        queues.send("a", envelope("m", {"do": "hang", "seconds": 1}))
        (told,) = queues.take("error-end", 1)
        assert told["payload"]["error"] == "Runtime timeout exceeded after 300ms"
        failure = read_failure(Raw(json.dumps(told["payload"]).encode()))
        assert failure.code == "timeout_error"
        assert queues.depth("a-dlq") == 1
        queues.send("a", envelope("after", {"n": 1}))
        assert queues.take("happy-end", 1)[0]["id"] == "after"
        assert work.sidecar.child.poll() is None


def test_a_next_actor_without_a_queue_is_told_at_once_and_the_handler_not_called_again(
    work: Pod, queues: Queues
) -> None:
    queues.send("a", envelope("m", {"n": 1}, ["a", "nobody"]))
    (told,) = queues.take("error-end", 1)
    assert told["payload"]["error"] == "routing_error"
    assert "asya-nobody" in told["payload"]["details"]["message"]
    assert queues.depth("a-dlq") == 1
    found = work.metrics()
    assert found['asya_actor_messages_received_total{queue="a",transport="sqlite"}'] == 1
    assert found['asya_actor_messages_failed_total{queue="a",reason="routing_error"}'] == 1


@RUNTIMES
def test_in_envelope_mode_the_handler_decides_on_the_route(url: str, queues: Queues, runtime: Path) -> None:
    with running(url, handler="jobs.route", runtime=runtime, ASYA_HANDLER_MODE="envelope"):
        queues.make("c")
        queues.send("a", envelope("m", {"result": 1, "route": {"actors": ["a", "c"]}}, ["a", "b"]))
        assert queues.take("c", 1)[0]["route"] == {"actors": ["a", "c"], "current": 1}


@pytest.mark.parametrize("current", [1, 9, -1])
def test_a_route_out_of_range_is_finished_and_stays_as_it_is(url: str, queues: Queues, current: int) -> None:
    with running(
        url, handler="jobs.route", runtime=ASYAS, ASYA_HANDLER_MODE="envelope", ASYA_ENABLE_VALIDATION="false"
    ):
        queues.send("a", envelope("m", {"result": 1, "route": {"current": current}}))
        assert queues.take("happy-end", 1)[0]["route"] == {"actors": ["a"], "current": current}


def test_an_answer_that_is_none_is_told_in_asyas_words_once_its_attempts_are_used_up(url: str, queues: Queues) -> None:
    settings = {"ONCUE_CRASH_ATTEMPTS": "2", "ONCUE_BACKOFF": "0"}
    with running(url, handler="jobs.work", runtime=ASYAS, **settings) as work:
        queues.send("a", envelope("m", {"do": "nan"}))
        (told,) = queues.take("error-end", 1)
        assert told["payload"]["error"].startswith("failed to parse runtime response: ")
        assert "details" not in told["payload"]
        assert work.metrics()['asya_actor_runtime_errors_total{error_type="execution_error",queue="a"}'] == 2


def test_a_message_after_its_deadline_is_not_worked_on(work: Pod, queues: Queues) -> None:
    queues.send("a", envelope("m", {"n": 1}, deadline="2020-01-01T00:00:00Z"))
    assert queues.take("error-end", 1)[0]["payload"]["error"] == "expired_error"
    assert queues.depth("happy-end") == 0


def test_the_handlers_own_failures_are_tried_again_when_asked_to(url: str, queues: Queues) -> None:
    with running(url, ONCUE_ATTEMPTS="3", ONCUE_BACKOFF="10ms") as work:
        queues.send("a", envelope("m", {"do": "fail"}))
        queues.take("error-end", 1)
        assert work.metrics()['asya_actor_messages_received_total{queue="a",transport="sqlite"}'] == 3


def test_foreign_and_own_sidecars_and_runtimes_work_on_one_route(url: str, queues: Queues) -> None:
    theirs = [str(HERE / "asya_sidecar.py")]
    with (
        running(url, "one", "jobs.double"),
        pod(url, "two", "jobs.double") as two,
        running(url, "three", "jobs.double", runtime=ASYAS),
    ):
        two.start_runtime()
        assert two.start_sidecar(ready=False, program=[sys.executable, *theirs]).line() == ["working"]
        queues.send("one", envelope("m", 1, ["one", "two", "three"]))
        assert queues.take("happy-end", 1) == [envelope("m", 8, ["one", "two", "three"], 3)]
        queues.send("two", envelope("f", {"do": "x"}, ["two"]))
        (told,) = queues.take("error-end", 1)
        assert told["payload"]["error"] == "processing_error"
        two.runtime.send_signal(signal.SIGTERM)


def test_what_asyas_texts_say_is_read_back() -> None:
    text = b'{"error": "failed to read response from runtime: failed to read length prefix: EOF"}'
    assert read_failure(Raw(text)).code == "connection_error"
    assert isinstance(read_failure(Raw(b'{"error": "x"}')), Failure)
