"""Reports to a gateway: what is told, in which order, and that no message waits for it."""

from __future__ import annotations

import threading
from typing import Any

from sidecar.gateways import gateway
from sidecar.pods import Queues, envelope, free_port, pod, running, until


def test_each_step_is_told_in_order_with_the_index_of_the_actor_that_took_it(url: str, queues: Queues) -> None:
    with gateway() as told, running(url, ASYA_GATEWAY_URL=told.url):
        queues.make("b")
        queues.send("a", *(envelope(f"m{number}", {"n": 1}, ["x", "a", "b"], 1) for number in range(20)))
        queues.take("b", 20)
        until(lambda: len(told.taken) == 60)
    for number in range(20):
        mine = [body for path, body in told.taken if path == f"/envelopes/m{number}/progress"]
        assert [body["status"] for body in mine] == ["received", "processing", "completed"]
        assert {body["current_actor_idx"] for body in mine} == {1}
        assert all(body["actors"] == ["x", "a", "b"] for body in mine)
        size, took = mine[0]["message_size_kb"], mine[2]["duration_ms"]
        assert [body["message"] for body in mine] == [
            f"Received message ({size:.2f} KB)",
            "Processing in a",
            f"Completed processing in {took}ms",
        ]


def test_a_failure_and_an_empty_result_are_not_told_as_completed(url: str, queues: Queues) -> None:
    with gateway() as told, running(url, ASYA_GATEWAY_URL=told.url):
        queues.send("a", envelope("m", {"do": "fail"}), envelope("n", {"do": "nothing"}), envelope("o", {"n": 1}))
        until(lambda: len(told.taken) == 7)
    assert sorted(path for path, body in told.taken if body["status"] == "completed") == ["/envelopes/o/progress"]


def test_the_end_of_a_route_is_told_until_the_gateway_takes_it(url: str, queues: Queues) -> None:
    refusals = iter([500, 503, 500])
    payload = {"error": "processing_error", "details": {"message": "no", "type": "X", "traceback": ""}}
    with (
        gateway(lambda _path, _body: next(refusals, 200)) as told,
        pod(url, "happy-end", ONCUE_BUILT_IN="true", ASYA_GATEWAY_URL=told.url) as happy,
        pod(url, "error-end", ONCUE_BUILT_IN="true", ASYA_GATEWAY_URL=told.url) as error,
    ):
        happy.start_sidecar()
        error.start_sidecar()
        queues.send("happy-end", envelope("m/1", {"n": 1}, ["x"], 1))
        queues.send("error-end", envelope("n", payload, ["x", "y"], 1))
        until(lambda: len(told.taken) == 2)
        found = {body["id"]: (path, body) for path, body in told.taken}
        path, body = found["m/1"]
        assert path == "/envelopes/m%2F1/final"
        assert body.pop("timestamp").endswith("Z")
        assert body == {"id": "m/1", "status": "succeeded", "progress": 1.0, "result": {"n": 1}}
        path, body = found["n"]
        del body["timestamp"]
        assert body == {
            "id": "n",
            "status": "failed",
            "error": "processing_error",
            "error_details": payload["details"],
            "actors": ["x", "y"],
            "current_actor_idx": 1,
            "current_actor_name": "y",
        }
        assert len(told.asked) == 5


def test_a_users_own_end_tells_what_its_handler_returned(url: str, queues: Queues, tmp_path: Any) -> None:
    settings = {"ASYA_IS_END_ACTOR": "true", "ASYA_HANDLER_MODE": "payload"}
    with gateway() as told, running(url, "happy-end", "jobs.double", ASYA_GATEWAY_URL=told.url, **settings):
        queues.send("happy-end", envelope("m", 21, ["x"], 1))
        until(lambda: told.taken)
    assert told.taken[0][1]["result"] == 42


def test_a_gateway_that_is_away_or_slow_or_refuses_costs_no_message_and_no_time(url: str, queues: Queues) -> None:
    port = free_port()
    with running(url, ASYA_GATEWAY_URL=f"http://127.0.0.1:{port}") as work:
        queues.send("a", *(envelope(f"m{number}", {"n": 1}) for number in range(200)))
        queues.take("happy-end", 200)
        assert work.sidecar.log("gateway.lost")
        assert queues.depth("a-dlq") == 0
        with gateway(port=port) as told:
            queues.send("a", envelope("late", {"n": 1}))
            until(lambda: [path for path, _ in told.taken].count("/envelopes/late/progress") == 3)
            work.sidecar.log("gateway.back")


def test_an_envelope_that_the_gateway_does_not_know_is_soon_left_alone(url: str, queues: Queues) -> None:
    with gateway(lambda _path, _body: 500) as told, running(url, ASYA_GATEWAY_URL=told.url) as work:
        queues.send("a", envelope("m", {"n": 1}))
        queues.take("happy-end", 1)
        until(lambda: len(told.asked) == 2)
        assert work.sidecar.stop() == 0
        assert len(told.asked) == 2


def test_what_is_to_be_told_is_told_before_it_ends(url: str, queues: Queues) -> None:
    gate = threading.Event()

    def answer(_path: str, _body: dict[str, Any]) -> int:
        gate.wait(10)
        return 200

    with gateway(answer) as told, pod(url, "happy-end", ONCUE_BUILT_IN="true", ASYA_GATEWAY_URL=told.url) as happy:
        happy.start_sidecar()
        queues.send("happy-end", envelope("m", 1, ["x"], 1))
        until(lambda: queues.depth("happy-end") == 0)
        happy.sidecar.signal(15)
        happy.sidecar.log("pump.stopped")
        gate.set()
        assert happy.sidecar.end() == 0
        assert [path for path, _ in told.taken] == ["/envelopes/m/final"]
