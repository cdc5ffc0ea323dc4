"""`oncue up` with real processes: messages through manifests' actors, scaling, ends, and the end of it all."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from pathlib import Path

import pytest
from local.upping import (
    JOBS,
    Up,
    call,
    depth,
    eventually,
    manifest,
    notes,
    oncue,
    payload_of,
    results,
    runtimes,
    send,
    write,
)
from runtime.beside import NEWEST, OLDEST

from oncue.core.errors import ActorFailedError

ZERO = "minReplicas: 0, maxReplicas: 3, queueLength: 3, pollingInterval: 1, cooldownPeriod: 1"


def test_a_message_goes_through_a_route_and_its_result_is_kept() -> None:
    write(manifest("fan", "jobs.fan"), manifest("echo", "jobs.echo"))
    with Up():
        assert call("fan", 4, route=["echo"]) == [4, 5, 6]
        eventually(lambda: len(results()) == 3)
        assert {each.status for each in results()} == {"succeeded"}
        assert sorted(payload_of(each) for each in results()) == [4, 5, 6]


def test_send_with_wait_is_answered() -> None:
    write(manifest("echo", "jobs.echo", scaling=ZERO))
    with Up():
        done = oncue("send", "echo", '{"a": 1}', "--wait", "--timeout", "30s")
        assert (done.returncode, done.stdout) == (0, '{\n  "a": 1\n}\n'), done.stderr


def test_a_handlers_failure_is_told_kept_and_set_aside() -> None:
    write(manifest("boom", "jobs.boom"))
    with Up() as up:
        with pytest.raises(ActorFailedError, match="ValueError: no luck"):
            call("boom", "luck")
        up.becomes("boom", lambda each: each.dead == 1 and each.errors == 1)
        eventually(lambda: len(results()) == 1)
        (result,) = results()
        assert (result.status, result.actor) == ("failed", "boom")
        assert result.failure is not None
        assert result.failure.type == "ValueError"


def test_a_route_to_an_actor_that_is_not_there_ends_at_once_with_the_reason() -> None:
    write(manifest("echo", "jobs.echo"))
    with Up():
        with pytest.raises(ActorFailedError, match="asya-nobody"):
            call("echo", 1, route=["nobody"])
        eventually(lambda: [each.status for each in results()] == ["failed"])
        assert depth("asya-echo-dlq").ready == 1
        assert notes() == ["echo 1"]


def test_an_actor_starts_with_its_first_message_sleeps_and_starts_again() -> None:
    write(manifest("echo", "jobs.echo", scaling=ZERO))
    with Up() as up:
        assert runtimes(up.process.pid) == []
        assert call("echo", 1) == 1
        assert up.reports()["echo"].state == "running"
        up.becomes("echo", lambda each: each.state == "idle")
        assert runtimes(up.process.pid) == []
        assert call("echo", 2) == 2


def test_replicas_follow_the_depth_of_the_queue_up_to_the_most() -> None:
    write(manifest("held", "jobs.held", scaling=ZERO))
    with Up() as up:
        send("held", *range(7))
        up.becomes("held", lambda each: each.wanted == 3 and each.replicas == 3)
        Path("go").touch()
        eventually(lambda: len(results()) == 7)
        up.becomes("held", lambda each: each.state == "idle")


def test_without_scaling_there_are_as_many_replicas_as_the_manifest_says() -> None:
    write(manifest("held", "jobs.held", replicas=2))
    with Up() as up:
        up.becomes("held", lambda each: each.replicas == each.wanted == 2)
        send("held", 1, 2)
        eventually(lambda: len(notes("held")) == 2)
        Path("go").touch()
        eventually(lambda: len(results()) == 2)


def test_ctrl_c_finishes_what_has_begun_and_leaves_the_rest_in_the_queue() -> None:
    write(manifest("held", "jobs.held"))
    with Up() as up:
        send("held", 1, 2)
        eventually(lambda: len(notes("held")) == 1)
        up.process.send_signal(signal.SIGINT)
        up.said("up.stopping")
        Path("go").touch()
        assert up.process.wait(30) == 0
    assert notes("done") == ["done 1"]
    assert depth("asya-held").ready == 1
    with Up():
        eventually(lambda: len(results()) == 2)
    assert [each.split()[1] for each in notes("held")] == ["1", "2"]


def test_what_does_not_finish_within_the_grace_period_goes_back_uncounted() -> None:
    write(manifest("held", "jobs.held"))
    with Up("--grace", "300ms") as up:
        send("held", 1)
        eventually(lambda: len(notes("held")) == 1)
        assert up.end(signal.SIGTERM) == 0
    assert depth("asya-held").ready == 1
    Path("go").touch()
    with Up() as up:
        eventually(lambda: [each.status for each in results()] == ["succeeded"])
        assert up.reports()["held"].errors == 0


def test_metrics_and_health_are_served_where_one_asks_for_them() -> None:
    write(manifest("echo", "jobs.echo"))
    with Up("--metrics", "127.0.0.1:0") as up:
        up.said("metrics.served")
        address = next(line["address"] for line in up.records() if line["message"] == "metrics.served")
        assert call("echo", 1) == 1
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            assert 'queue="asya-echo"' in answer.read().decode()
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=10) as answer:
            assert answer.status == 200


def test_a_second_signal_gives_back_at_once_what_has_begun() -> None:
    write(manifest("held", "jobs.held"))
    with Up() as up:
        send("held", 1)
        eventually(lambda: len(notes("held")) == 1)
        up.process.send_signal(signal.SIGINT)
        up.said("up.stopping")
        eventually(lambda: _signalled_again(up))
        assert up.process.wait(30) == 130
    assert depth("asya-held").ready == 1


def _signalled_again(up: Up) -> bool:
    """A second signal soon after the first counts as the same, so it is sent until it is heard."""
    if '"grace": 0.0' in up.log:
        return True
    up.process.send_signal(signal.SIGINT)
    return False


def test_a_second_up_in_the_same_folder_is_refused_in_one_line() -> None:
    write(manifest("echo", "jobs.echo"))
    with Up() as up:
        second = oncue("up")
        assert second.returncode == 1
        assert second.stderr.startswith(
            f"oncue: oncue up runs already in this folder (process {up.process.pid}, since "
        )
        assert second.stderr.count("\n") == 1
        assert call("echo", 1) == 1


def test_all_faults_of_all_manifests_are_told_at_once_and_nothing_starts() -> None:
    write(manifest("a", "jobs.echo").replace("kind: AsyncActor", "kind: AsyncActr"), manifest("b", "jobs.echo", python="python9.9"), manifest("b", "jobs.echo"), manifest("c", "nodot"))  # fmt: skip
    done = oncue("up")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 4, done.stderr
    assert all(line.startswith("oncue: ") for line in lines)
    told = "\n".join(lines)
    assert "actors.yaml:2: kind: is 'AsyncActr', expected AsyncActor" in told
    assert "actor 'b' is defined already" in told
    assert "actor b: spec.workload.pythonExecutable is 'python9.9', but it is not in PATH" in told
    assert "actor c: ASYA_HANDLER in the env of asya-runtime is 'nodot', expected module.function" in told
    assert not Path(".oncue/oncue.db").exists()


def test_a_folder_without_manifests_is_a_fault() -> None:
    done = oncue("up")
    assert done.returncode == 2
    assert "there is no AsyncActor manifest in" in done.stderr


def test_what_cannot_be_honoured_is_said_once_for_all_actors() -> None:
    write(*(manifest(name, "jobs.echo") for name in "abc"))
    with Up() as up:
        up.said("manifest.unheeded")
    assert up.log.count("spec.transport (sqs)") == 1


@pytest.mark.parametrize("python", sorted({OLDEST, NEWEST}), ids=lambda path: path.parts[-3])
def test_a_handler_runs_on_the_python_that_its_manifest_names(python: Path) -> None:
    write(manifest("runs-on", "jobs.runs_on", python=str(python)))
    with Up():
        (major, minor) = call("runs-on", None)
        assert str(python.resolve()).endswith(f"{major}.{minor}")


def test_a_handler_gets_its_manifests_environment_and_not_our_settings() -> None:
    more = "              - {name: COLOUR, value: red}\n"
    write(manifest("environ", "jobs.environ", env=more))
    with Up(ONCUE_LOG_LEVEL="debug", HOUSE="here"):
        assert call("environ", ["COLOUR", "ONCUE_LOG_LEVEL", "HOUSE"]) == {"COLOUR": "red", "HOUSE": "here"}


def test_the_memory_of_a_handler_is_limited_as_its_manifest_says() -> None:
    write(manifest("big", "jobs.big", memory="512Mi"))
    with Up():
        assert call("big", 2**20) == 2**20
        with pytest.raises(ActorFailedError, match="MemoryError"):
            call("big", 2**30)


def test_a_manifest_may_take_the_place_of_a_built_in_end() -> None:
    env = "              - {name: ASYA_HANDLER_MODE, value: envelope}\n"
    ending = "\ndef ending(envelope):\n    note(f\"ended {envelope['payload']}\")\n"
    write(manifest("echo", "jobs.echo"), manifest("happy-end", "jobs.ending", env=env), jobs=JOBS + ending)
    with Up() as up:
        send("echo", 1, 2)
        eventually(lambda: len(notes("ended")) == 2, lambda: up.log)
        assert "error-end" in up.reports()
        assert not up.reports()["happy-end"].built_in
        assert results() == []


def test_a_handler_that_cannot_be_loaded_is_shown_and_its_messages_wait() -> None:
    write(manifest("missing", "jobs.missing"), manifest("echo", "jobs.echo"))
    with Up() as up:
        send("missing", 1)
        report = up.becomes("missing", lambda each: each.state == "failing")
        assert "Cannot load handler 'jobs.missing'" in report.error
        assert call("echo", 1) == 1
        assert depth("asya-missing").ready == 1


def test_lines_of_handlers_are_told_apart_by_actor() -> None:
    write(manifest("a", "jobs.loud"), manifest("b", "jobs.loud"), jobs="def loud(x):\n    print('said', x)\n")
    with Up() as up:
        send("a", 1)
        send("b", 2)
        up.said('"message": "said 1", "actor": "a", "replica": 1')
        up.said('"message": "said 2", "actor": "b", "replica": 1')


def test_sockets_are_in_a_folder_for_nobody_else() -> None:
    write(manifest("echo", "jobs.echo"))
    with Up() as up:
        assert call("echo", 1) == 1
        assert up.sockets is not None
        assert up.sockets.stat().st_mode & 0o777 == 0o700
        (sock,) = up.sockets.glob("*/asya-runtime.sock")
        assert sock.stat().st_mode & 0o777 == 0o600


def test_handlers_are_found_beside_the_manifest_when_they_are_not_in_the_current_folder() -> None:
    Path("deploy").mkdir()
    write(manifest("echo", "jobs.echo"))
    for name in ("jobs.py", "actors.yaml"):
        shutil.move(name, f"deploy/{name}")
    with Up("deploy"):
        assert call("echo", 1) == 1
    assert os.path.exists("deploy/notes")  # noqa: PTH110
