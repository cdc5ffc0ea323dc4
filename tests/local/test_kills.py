"""Anything may be killed in the middle of work: every message ends exactly once, and no process is left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from local.upping import (
    Up,
    alive,
    children_of,
    depth,
    eventually,
    manifest,
    notes,
    payload_of,
    results,
    runtimes,
    send,
    write,
)

from oncue.transports.sqlite.schema import LEASED

ZERO = "minReplicas: 0, maxReplicas: 2, queueLength: 2, pollingInterval: 1, cooldownPeriod: 2"


def workers(name: str) -> list[int]:
    """The processes that handlers noted; the last is that of the last call."""
    return [int(note.split()[2]) for note in notes(name)]


def parents(name: str) -> list[int]:
    return [int(note.split()[3]) for note in notes(name)]


def run_leases_out() -> None:
    """What else takes a minute: end all leases of the store, while nobody has it open."""
    with closing(sqlite3.connect(".oncue/oncue.db")) as connection, connection:
        assert connection.execute("UPDATE oncue_messages SET at = 1 WHERE state = ?", (LEASED,)).rowcount


def test_a_runtime_worker_that_is_killed_has_its_message_done_again() -> None:
    write(manifest("held", "jobs.held"))
    with Up() as up:
        send("held", 1)
        eventually(lambda: len(notes("held")) == 1)
        os.kill(workers("held")[0], signal.SIGKILL)
        eventually(lambda: len(notes("held")) == 2, lambda: up.log)
        Path("go").touch()
        eventually(lambda: [each.status for each in results()] == ["succeeded"])
        assert up.reports()["held"].errors == 1


def test_a_runtime_that_is_killed_is_started_again_and_its_message_done_again() -> None:
    write(manifest("held", "jobs.held"))
    with Up() as up:
        send("held", 1)
        eventually(lambda: len(notes("held")) == 1)
        parent, worker = parents("held")[0], workers("held")[0]
        os.kill(parent, signal.SIGKILL)
        up.said("process.died")
        eventually(lambda: not alive(worker))
        eventually(lambda: len(notes("held")) == 2, lambda: up.log)
        assert parents("held")[1] != parent
        Path("go").touch()
        eventually(lambda: [each.status for each in results()] == ["succeeded"])


def test_the_supervisor_that_is_killed_leaves_no_process_and_no_message_behind() -> None:
    write(manifest("held", "jobs.held", replicas=2))
    with Up() as up:
        send("held", 1, 2)
        eventually(lambda: len(notes("held")) == 2)
        touched = [*workers("held"), *parents("held")]
        up.end(signal.SIGKILL)
        eventually(lambda: not any(map(alive, touched)), within=5.0)
        left, up.sockets = up.sockets, None
    Path("go").touch()
    assert left is not None
    with Up():
        assert not left.exists()
        assert depth("asya-held").leased == 2  # until their leases run out


def test_what_a_killed_supervisor_had_begun_comes_again_when_its_lease_runs_out() -> None:
    write(manifest("slow", "jobs.slow", replicas=2))
    with Up() as up:
        send("slow", *range(40))
        eventually(lambda: len(notes("slow")) >= 10)
        up.end(signal.SIGKILL)
        up.sockets = None
    run_leases_out()
    with Up() as up:
        eventually(lambda: len(results()) == 40, lambda: f"{Counter(map(payload_of, results()))}\n{up.log}")
        assert sorted(payload_of(each) for each in results()) == list(range(40))
        assert depth("asya-slow").ready == depth("asya-happy-end").ready == 0


def _worker(_up: Up) -> int:
    return workers("slow")[-1]


def _runtime(up: Up) -> int:
    return (runtimes(up.process.pid) or [0])[0]


@pytest.mark.parametrize("victim", [_worker, _runtime])
def test_every_message_ends_exactly_once_whatever_is_killed_again_and_again(victim: Callable[[Up], int]) -> None:
    write(manifest("slow", "jobs.slow", scaling=ZERO))
    with Up() as up:
        send("slow", *range(60))
        for kill in range(1, 6):
            eventually(lambda done=kill * 8: len(notes("slow")) >= done, lambda: up.log)
            pid = victim(up)
            if pid and alive(pid):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(results()) >= 60, lambda: f"{len(results())}\n{up.log}")
        ended = results()
        assert len({each.id for each in ended}) == len(ended) == 60
        failed = sum(each.status == "failed" for each in ended)
        assert depth("asya-slow-dlq").ready == failed
        assert depth("asya-slow").leased == depth("asya-slow").ready == 0
        eventually(lambda: len(children_of(up.process.pid)) <= 4)
