"""The ends of routes: built in, or a user's own runtime with whole envelopes."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from commandline import process
from programs import environment
from sidecar.pods import ASYAS, OURS, Queues, envelope, pod, running, until

from oncue.core.message import new_id


def test_built_in_ends_keep_results_and_answer_who_waits(url: str, queues: Queues, tmp_path: Path) -> None:
    results = f"sqlite:///{tmp_path}/results.db"
    with (
        running(url) as work,
        pod(url, "happy-end", ONCUE_BUILT_IN="true", ONCUE_RESULTS=results) as happy,
        pod(url, "error-end", ONCUE_BUILT_IN="true", ONCUE_RESULTS=results) as error,
    ):
        happy.start_sidecar()
        error.start_sidecar()
        surroundings = environment(ONCUE_URL=url, ONCUE_RESULTS=results)

        def call(payload: str) -> tuple[int, bytes, bytes]:
            done = process("send", "a", payload, "--wait", "--timeout", "20s", env=surroundings)
            return done.returncode, done.stdout, done.stderr

        assert json.loads(call('{"n": 1}')[1]) == {"n": 1}
        assert json.loads(call('{"do": "fan", "n": 3}')[1]) == [0, 1, 2]
        assert call('{"do": "nothing"}')[:2] == (0, b"null\n")
        code, _, text = call('{"do": "fail", "text": "it cannot be"}')
        assert code == 1
        assert b"ValueError: it cannot be" in text
        listed = process("result", "list", "--json", env=surroundings)
        kept = json.loads(listed.stdout)
        assert sorted(each["status"] for each in kept) == ["failed", *["succeeded"] * 5]
        assert happy.metrics()['asya_actor_messages_processed_total{queue="happy-end",status="end_consumed"}'] == 5
        assert work.sidecar.stop() == happy.sidecar.stop() == error.sidecar.stop() == 0


def test_a_result_waits_in_its_queue_while_the_store_is_away(url: str, queues: Queues, tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with pod(url, "happy-end", ONCUE_BUILT_IN="true", ONCUE_RESULTS=f"sqlite:///{path}") as happy:
        path.mkdir()
        happy.start_sidecar()
        queues.send("happy-end", envelope("m", 5, current=1))
        happy.sidecar.log("message.retried", id="m")
        path.rmdir()
        until(lambda: queues.depth("happy-end") == 0)
        with sqlite3.connect(path) as store:
            assert store.execute("SELECT id, status FROM oncue_results").fetchall() == [("m", "succeeded")]
        store.close()


@pytest.mark.parametrize("runtime", [OURS, ASYAS], ids=["ours", "asyas"])
def test_a_users_own_end_gets_whole_envelopes_whoever_they_are_for(
    url: str, queues: Queues, tmp_path: Path, runtime: Path
) -> None:
    seen = tmp_path / "seen"
    settings = {
        "ASYA_IS_END_ACTOR": "true",
        "ASYA_HANDLER_MODE": "envelope",
        "ASYA_ENABLE_VALIDATION": "false",
        "SEEN": str(seen),
    }
    with running(url, "happy-end", "jobs.end", runtime=runtime, **settings) as work:
        reply = f"oncue-reply-{new_id()}"
        queues.make(reply)
        headers = {"reply-to": f"asya-{reply}"}
        queues.send("happy-end", envelope("m", {"n": 1}, ["x", "y"], 2, headers=headers), envelope("n", 2, ["x"], 0))
        assert queues.take(reply, 1) == [envelope("m", {"n": 1}, ["x", "y"], 2, headers=headers)]
        until(lambda: queues.depth("happy-end") == 0)
        assert sorted(seen.read_text().split()) == ["m", "n"]
        assert queues.depth("happy-end-dlq") == 0
        assert work.metrics()['asya_actor_messages_processed_total{queue="happy-end",status="end_consumed"}'] == 2


@pytest.mark.parametrize("name", ["happy-end", "error-end"])
def test_what_an_end_cannot_handle_is_set_aside_and_feeds_no_loop(
    url: str, queues: Queues, tmp_path: Path, name: str
) -> None:
    settings = {
        "ASYA_IS_END_ACTOR": "true",
        "ASYA_HANDLER_MODE": "envelope",
        "ASYA_ENABLE_VALIDATION": "false",
        "SEEN": str(tmp_path / "seen"),
    }
    with running(url, name, "jobs.end", **settings) as work:
        queues.send(name, b"no envelope", envelope("", 1), envelope("m", "crash", ["x"], 1), envelope("n", 1, ["x"], 1))
        until(lambda: queues.depth(name) == 0)
        assert queues.depth(f"{name}-dlq") == 3
        assert work.metrics()[f'asya_actor_messages_received_total{{queue="{name}",transport="sqlite"}}'] == 4


def test_a_built_in_error_end_takes_no_part_in_a_poison_loop(url: str, queues: Queues) -> None:
    with running(url), pod(url, "error-end", ONCUE_BUILT_IN="true") as error:
        error.start_sidecar()
        queues.send("a", {"id": 7, "route": {"actors": ["a"], "current": 0}, "payload": 1}, b"")
        until(lambda: queues.depth("a-dlq") == 2)
        until(lambda: queues.depth("error-end") == 0)
        queues.send("error-end", {"id": "", "route": {"actors": ["error-end"], "current": 0}, "payload": {}})
        until(lambda: queues.depth("error-end-dlq") == 1)
        received = error.metrics()['asya_actor_messages_received_total{queue="error-end",transport="sqlite"}']
        assert received == 3
