"""Processes killed at random, and every message ends once: in happy-end, or in error-end together with its dead letter."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter

import pytest
from sidecar.pods import ASYAS, OURS, Pod, Queues, envelope, kill, pod, running, until, workers_of

QUICK = {"ONCUE_BACKOFF": "20ms", "ONCUE_BACKOFF_CAP": "200ms", "ONCUE_CRASH_ATTEMPTS": "30"}
SHORT = {**QUICK, "ONCUE_LEASE": "2s"}
"""Where sidecars are killed, what they held has to come back soon."""


def ids(queues: Queues, actor: str) -> list[str]:
    return [message.id for message in queues.peek(actor)]


def ended_once(queues: Queues, sent: set[str], dead: set[str]) -> None:
    """Every message is where it belongs, and once."""
    happy, error, letters = ids(queues, "happy-end"), ids(queues, "error-end"), ids(queues, "a-dlq")
    assert Counter(happy) == Counter(sent - dead)
    assert Counter(error) == Counter(dead)
    assert Counter(letters) == Counter(dead)


class Troubled:
    """A pod whose processes are killed, and started again as a cluster would."""

    def __init__(self, work: Pod, chance: random.Random) -> None:
        self._work = work
        self._chance = chance

    def kill_one(self) -> None:
        work = self._work
        match self._chance.choice(["runtime", "worker", "worker", "sidecar"]):
            case "runtime":
                workers = workers_of(work.runtime.pid)
                work.kill_runtime()
                for each in workers:
                    kill(each)
                work.start_runtime()
            case "worker":
                for each in workers_of(work.runtime.pid):
                    kill(each)
            case _:
                work.sidecar.child.kill()
                work.sidecar.child.wait()
                work.start_sidecar(ready=False)


@pytest.mark.parametrize("runtime", [OURS, ASYAS], ids=["ours", "asyas"])
def test_whoever_is_killed_every_message_ends_once(url: str, queues: Queues, runtime: object) -> None:
    chance = random.Random(20)
    sent = {f"m{number}" for number in range(400)}
    failing = {f"m{number}" for number in range(0, 400, 40)}
    bodies = [envelope(id, {"do": "fail" if id in failing else "pause", "seconds": 0.02}) for id in sorted(sent)]
    with running(url, runtime=runtime, ONCUE_CONCURRENCY="8", **SHORT) as work:
        queues.send("a", *bodies)
        troubled = Troubled(work, chance)
        for _ in range(12):
            time.sleep(chance.uniform(0.05, 0.5))
            troubled.kill_one()
        until(lambda: queues.depth("a") == 0, within=50)
        ended_once(queues, sent, failing)


def test_messages_that_kill_their_runtime_end_by_themselves_and_their_neighbours_are_unharmed(
    url: str, queues: Queues
) -> None:
    settings = QUICK | {"ONCUE_CRASH_ATTEMPTS": "5", "ONCUE_CONCURRENCY": "16"}
    poison = {f"p{number}" for number in range(3)}
    slow = {f"s{number}" for number in range(4)}
    quick = {f"q{number}" for number in range(100)}
    with running(url, **settings) as work:
        queues.send("a", *(envelope(id, {"do": "pause", "seconds": 1.0}) for id in sorted(slow)))
        until(lambda: work.metrics()["asya_actor_active_messages"] == 4)
        queues.send("a", *(envelope(id, {"do": "kill_all"}) for id in sorted(poison)))
        queues.send("a", *(envelope(id, {"n": 1}) for id in sorted(quick)))
        deadline = time.monotonic() + 50
        while queues.depth("a") and time.monotonic() < deadline:
            if work.runtime.poll() is not None:
                work.start_runtime()
            time.sleep(0.02)
        ended_once(queues, poison | slow | quick, poison)
        for told in queues.take("error-end", 3):
            assert told["payload"]["error"].startswith("failed to read response from runtime: ")


def test_a_message_that_kills_its_worker_counts_alone(url: str, queues: Queues) -> None:
    settings = QUICK | {"ONCUE_CRASH_ATTEMPTS": "3", "ONCUE_CONCURRENCY": "4", "ONCUE_PROCESSES": "2"}
    others = {f"m{number}" for number in range(50)}
    with running(url, **settings) as work:
        slow = [envelope(id, {"do": "pause", "seconds": 0.05}) for id in sorted(others)]
        queues.send("a", *slow[:3], envelope("poison", {"do": "die"}), *slow[3:])
        until(lambda: queues.depth("a") == 0, within=50)
        ended_once(queues, {"poison"} | others, {"poison"})
        (told,) = queues.take("error-end", 1)
        assert told["payload"]["error"] == "crash_error"
        assert work.runtime.poll() is None


def test_a_sidecar_that_dies_hands_its_messages_to_the_next(url: str, queues: Queues) -> None:
    with running(url, **SHORT) as first, pod(url, **SHORT) as second:
        queues.send("a", envelope("m", {"do": "pause", "seconds": 0.5}))
        until(lambda: first.metrics()["asya_actor_active_messages"] == 1)
        first.sidecar.child.send_signal(signal.SIGKILL)
        second.start()
        assert queues.take("happy-end", 1)[0]["id"] == "m"
