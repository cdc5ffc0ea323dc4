"""What a manifest comes to here: which Python, which folder, which environment, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from oncue.local.plan import Plan, Planned, manifests_here, plan
from oncue.manifests import Manifest


def actor(here: Path, name: str = "a", /, **more: Any) -> Manifest:
    given: dict[str, Any] = {"environment": {"ASYA_HANDLER": "jobs.echo"}, "transport": "sqs", **more}
    return Manifest(name=name, place=f"{here}/deploy/{name}.yaml:1", **given)


def planned(here: Path, /, *manifests: Manifest) -> Planned:
    (here / "deploy").mkdir(exist_ok=True)
    return plan(manifests or [actor(here)], here)


def one(here: Path, /, **more: Any) -> Plan:
    found = planned(here, actor(here, **more))
    assert found.faults == []
    (only,) = found.plans
    return only


def faults(here: Path, /, **more: Any) -> Sequence[str]:
    return [fault.removeprefix(f"{here}/deploy/") for fault in planned(here, actor(here, **more)).faults]


def test_the_default_python_is_the_one_that_runs_us(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert one(folder).python == sys.executable


def test_the_default_python_is_that_of_an_active_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "python3"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("VIRTUAL_ENV", str(folder))
    monkeypatch.setenv("PATH", str(program.parent))
    assert one(folder).python == str(program)


def test_a_python_with_a_path_is_looked_for_from_the_working_folder(folder: Path) -> None:
    program = folder / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    assert one(folder, python="venv/bin/python").python == str(program)
    assert faults(folder, python="other/bin/python") == [
        "a.yaml:1: actor a: spec.workload.pythonExecutable is 'other/bin/python', but there is no such program"
    ]


def test_a_handler_in_the_current_folder_goes_before_one_beside_the_manifest(folder: Path) -> None:
    assert one(folder).folder == folder
    (folder / "deploy" / "jobs").mkdir()
    assert one(folder).folder == folder / "deploy"
    (folder / "jobs.py").touch()
    assert one(folder).folder == folder


def test_a_working_folder_is_honoured_where_there_is_one(folder: Path) -> None:
    (folder / "code").mkdir()
    assert one(folder, folder="code").folder == folder / "code"
    assert one(folder, folder=str(folder / "code")).folder == folder / "code"
    (folder / "deploy" / "beside").mkdir()
    assert one(folder, folder="beside").folder == folder / "deploy" / "beside"


def test_a_working_folder_that_only_a_container_has_is_said(folder: Path) -> None:
    found = planned(folder, actor(folder, folder="/no/such/app"))
    assert found.plans[0].folder == folder
    assert "workingDir (/no/such/app)" in found.notes


def test_a_relative_working_folder_that_is_not_there_is_a_fault(folder: Path) -> None:
    (fault,) = faults(folder, folder="code")
    assert (
        fault == f"a.yaml:1: actor a: workingDir is 'code', but there is no such folder in {folder} or {folder}/deploy"
    )


def test_memory_is_a_limit_unless_the_environment_has_one(folder: Path) -> None:
    assert one(folder, memory=1000).environment["ONCUE_MEMORY_LIMIT"] == "1000"
    own = {"ASYA_HANDLER": "jobs.echo", "ONCUE_MEMORY_LIMIT": "1Gi"}
    assert one(folder, memory=1000, environment=own).environment["ONCUE_MEMORY_LIMIT"] == "1Gi"


def test_where_the_socket_is_is_chosen_here_and_said(folder: Path) -> None:
    found = planned(folder, actor(folder, environment={"ASYA_HANDLER": "jobs.echo", "ASYA_SOCKET_DIR": "/tmp/mine"}))
    assert "ASYA_SOCKET_DIR" not in found.plans[0].environment
    assert "env ASYA_SOCKET_DIR" in found.notes


def test_a_handler_from_a_secret_is_missing_and_the_fault_says_why(folder: Path) -> None:
    secret = "spec.workload.template.spec.containers[0].env[0].valueFrom (ASYA_HANDLER)"
    (fault,) = faults(folder, environment={}, ignored=[secret])
    assert fault.startswith(
        "a.yaml:1: actor a: ASYA_HANDLER in the env of asya-runtime is missing, expected module.function"
    )
    assert fault.endswith(f"; what {secret} says is only known in a cluster")


def test_an_end_that_nobody_defines_is_a_fault_with_what_may_have_been_meant(folder: Path) -> None:
    (fault,) = faults(folder, sidecar_environment={"ASYA_ACTOR_ERROR_END": "eror-end"})
    assert fault == (
        "a.yaml:1: actor a: ASYA_ACTOR_ERROR_END in spec.sidecar.env is 'eror-end', but no manifest defines that actor, "
        "did you mean 'error-end'?"
    )
    assert not planned(
        folder, actor(folder, sidecar_environment={"ASYA_ACTOR_ERROR_END": "b"}), actor(folder, "b")
    ).faults


def test_what_is_set_wrongly_for_the_sidecar_is_a_fault(folder: Path) -> None:
    (fault,) = faults(folder, sidecar_environment={"ASYA_RUNTIME_TIMEOUT": "soon"})
    assert fault.startswith("a.yaml:1: actor a: spec.sidecar.env: ASYA_RUNTIME_TIMEOUT is 'soon', expected ")


def test_what_is_set_for_the_sidecar_is_heeded(folder: Path) -> None:
    from oncue.core.settings import Settings
    from oncue.local.settings import actor_settings, sidecar_environment

    found = one(folder, timeout=20.0, sidecar_environment={"ONCUE_ATTEMPTS": "4", "ASYA_TRANSPORT": "sqs"})
    settings = actor_settings(found, folder, Settings(prefix="p-"))
    assert (settings.attempts, settings.timeout, settings.prefix, settings.happy_end) == (4, 20.0, "p-", "happy-end")
    environ = sidecar_environment(found, folder, Settings(prefix="p-"))
    assert (environ["ONCUE_ATTEMPTS"], environ["ONCUE_PREFIX"], environ["ONCUE_METRICS_ENABLED"]) == (
        "4",
        "p-",
        "false",
    )
    assert one(folder, sidecar_environment={"ASYA_RUNTIME_TIMEOUT": "1m"}).sidecar == {"ASYA_RUNTIME_TIMEOUT": "1m"}


def test_what_a_sidecar_is_told_about_queues_and_ports_has_no_effect_here_and_is_said(folder: Path) -> None:
    environ = {"ASYA_TRANSPORT": "sqs", "ASYA_METRICS_ADDR": ":80", "ASYA_GATEWAY_URL": "http://gateway"}
    notes = planned(folder, actor(folder, sidecar_environment=environ)).notes
    assert notes[1:] == [
        "spec.sidecar.env ASYA_TRANSPORT",
        "spec.sidecar.env ASYA_METRICS_ADDR",
    ]


def test_notes_name_the_actors_unless_it_is_all_of_them(folder: Path) -> None:
    found = planned(folder, actor(folder), actor(folder, "b", cpu=0.5))
    assert found.notes == ["spec.transport (sqs)", "resources.limits.cpu (b)"]


def test_two_plans_are_the_same_when_only_their_places_differ(folder: Path) -> None:
    before = one(folder)
    moved = plan([Manifest(name="a", place=f"{folder}/deploy/a.yaml:9", transport="x", environment={"ASYA_HANDLER": "jobs.echo"})], folder).plans[0]  # fmt: skip
    assert moved.same(before)
    assert not one(folder, replicas=2).same(before)


def test_only_files_that_say_they_are_for_actors_are_manifests_of_a_folder(folder: Path) -> None:
    (folder / "oncue.yaml").write_text("url: sqlite:///x.db\n", encoding="utf-8")
    (folder / "a.yaml").write_text("# one\napiVersion: asya.sh/v1alpha1\nkind: AsyncActr\n", encoding="utf-8")
    (folder / "b.yml").write_text("kind: x\n---\napiVersion: 'asya.sh/v1'\n", encoding="utf-8")
    (folder / "c.txt").write_text("apiVersion: asya.sh/v1alpha1\n", encoding="utf-8")
    assert [path.name for path in manifests_here(folder)] == ["a.yaml", "b.yml"]
