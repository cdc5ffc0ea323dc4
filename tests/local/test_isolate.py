"""`oncue up --isolate`: a real sidecar process beside each runtime, with the same promises."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from local.upping import Up, alive, call, depth, eventually, manifest, notes, payload_of, results, send, write

from oncue.core.errors import ActorFailedError

ZERO = "minReplicas: 0, maxReplicas: 2, queueLength: 2, pollingInterval: 1, cooldownPeriod: 1"


def sidecars(pid: int) -> list[int]:
    command = ["pgrep", "-f", f"tied.py {pid} kernel oncue sidecar"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [int(each) for each in found.split()]


def test_messages_go_through_sidecars_of_their_own_and_are_answered() -> None:
    write(manifest("fan", "jobs.fan"), manifest("echo", "jobs.echo", scaling=ZERO), manifest("boom", "jobs.boom"))
    with Up("--isolate") as up:
        assert call("fan", 4, route=["echo"]) == [4, 5, 6]
        assert len(sidecars(up.process.pid)) >= 2
        with pytest.raises(ActorFailedError, match="ValueError: no luck"):
            call("boom", "luck")
        up.becomes("echo", lambda each: each.state == "idle")
        told = [each for each in up.records() if each["logger"] == "oncue.sidecar"]
        assert {each["actor"] for each in told if each["message"] == "sidecar.started"} == {"fan", "echo", "boom"}
        assert not [each for each in up.records() if each["message"].startswith("{")]
        assert up.reports()["boom"].done is None
        assert depth("asya-boom-dlq").ready == 1


def test_a_sidecar_that_is_killed_is_started_again_and_loses_nothing() -> None:
    write(manifest("slow", "jobs.slow", replicas=2))
    with Up("--isolate") as up:
        assert call("slow", -1) == -1
        send("slow", *range(30))
        eventually(lambda: len(notes("slow")) > 10, up.read)
        os.kill(sidecars(up.process.pid)[0], signal.SIGKILL)
        up.said("process.died")
        eventually(lambda: depth("asya-slow").ready == 0, up.read)
        eventually(lambda: len(results()) + (depth("asya-slow").leased or 0) >= 31, up.read)
        assert {payload_of(each) for each in results()} <= set(range(-1, 30))


def test_ctrl_c_lets_sidecars_finish_and_leaves_no_process() -> None:
    write(manifest("held", "jobs.held"))
    with Up("--isolate") as up:
        send("held", 1)
        eventually(lambda: len(notes("held")) == 1, up.read)
        beside = sidecars(up.process.pid)
        up.process.send_signal(signal.SIGINT)
        up.said("up.stopping")
        Path("go").touch()
        assert up.process.wait(30) == 0
        assert not any(map(alive, beside))
    assert notes("done") == ["done 1"]


def test_sidecars_end_with_a_supervisor_that_is_killed() -> None:
    write(manifest("echo", "jobs.echo"))
    with Up("--isolate") as up:
        assert call("echo", 1) == 1
        beside = sidecars(up.process.pid)
        assert beside
        up.end(signal.SIGKILL)
        up.sockets = None
        eventually(lambda: not any(map(alive, beside)), within=5.0)
