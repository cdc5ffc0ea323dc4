"""AsyncActor manifests: what a good one says, and every fault of bad ones with its file, line and path."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.manifests import Manifest, Scaling, load_manifests, parse_quantity

GOOD = """\
apiVersion: asya.sh/v1alpha1
kind: AsyncActor
metadata:
  name: resize
  namespace: photos
spec:
  transport: sqlite
  sidecar:
    env:
      - {name: ONCUE_LOG_LEVEL, value: debug}
  timeout:
    processing: 60
    gracefulShutdown: 20
  scaling:
    enabled: true
    minReplicas: 1
    maxReplicas: 4
    queueLength: 8
    cooldownPeriod: 5
  workload:
    kind: Deployment
    pythonExecutable: python3.9
    template:
      metadata: {labels: {team: photos}}
      spec:
        nodeSelector: {disk: ssd}
        containers:
          - name: asya-runtime
            image: photos:1
            workingDir: code
            env:
              - {name: ASYA_HANDLER, value: photos.resize}
              - {name: EMPTY}
              - {name: SECRET, valueFrom: {secretKeyRef: {name: a, key: b}}}
            resources: {limits: {memory: 512Mi, cpu: 250m}}
            ports: []
          - name: helper
            image: helper:1
"""


def read(folder: Path, text: str) -> tuple[list[Manifest], list[str]]:
    path = folder / "actors.yaml"
    path.write_text(text, encoding="utf-8")
    manifests, faults = load_manifests([path])
    return list(manifests), [fault.removeprefix(f"{folder}/") for fault in faults]


def minimal(name: str = "a") -> str:
    return (
        f"apiVersion: asya.sh/v1alpha1\nkind: AsyncActor\nmetadata: {{name: {name}}}\nspec:\n  transport: sqlite\n"
        "  workload: {template: {spec: {containers: [{name: asya-runtime}]}}}\n"
    )


def test_a_manifest_says_everything_about_its_actor(tmp_path: Path) -> None:
    (manifest,), faults = read(tmp_path, GOOD)
    assert faults == []
    assert manifest == Manifest(
        name="resize",
        place=f"{tmp_path}/actors.yaml:1",
        transport="sqlite",
        timeout=60.0,
        grace=20.0,
        scaling=Scaling(enabled=True, least=1, most=4, cooldown=5, queue_length=8),
        python="python3.9",
        environment={"ASYA_HANDLER": "photos.resize", "EMPTY": ""},
        sidecar_environment={"ONCUE_LOG_LEVEL": "debug"},
        folder="code",
        memory=512 * 2**20,
        cpu=0.25,
        ignored=(
            "spec.workload.template.spec.nodeSelector",
            "spec.workload.template.spec.containers[0].ports",
            "spec.workload.template.spec.containers[0].env[2].valueFrom (SECRET)",
            "spec.workload.template.spec.containers[1] (helper)",
        ),
    )


def test_what_a_manifest_leaves_out_has_the_operators_defaults(tmp_path: Path) -> None:
    (manifest,), faults = read(tmp_path, minimal())
    assert faults == []
    assert (manifest.timeout, manifest.grace, manifest.replicas, manifest.python) == (None, 30.0, 1, "python3")
    assert manifest.scaling == Scaling(enabled=False, least=0, most=50, polling=10, cooldown=60, queue_length=5)


def test_documents_and_folders_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.yml").write_text(minimal("b") + "---\n" + minimal("c") + "---\n", encoding="utf-8")
    (tmp_path / "a.yaml").write_text(minimal("a"), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("kind: nothing", encoding="utf-8")
    manifests, faults = load_manifests([tmp_path])
    assert not faults
    assert [manifest.name for manifest in manifests] == ["a", "b", "c"]


def test_two_actors_of_one_name_are_a_fault_that_names_both_places(tmp_path: Path) -> None:
    manifests, faults = read(tmp_path, minimal() + "---\n" + minimal())
    assert len(manifests) == 1
    assert faults == [f"actors.yaml:8: metadata.name: actor 'a' is defined already at {tmp_path}/actors.yaml:1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("kind: AsyncActor", "kind: AsyncActr"), "2: kind: is 'AsyncActr', expected AsyncActor"),
        (("apiVersion: asya.sh/v1alpha1\n", ""), "1: apiVersion: is missing, expected asya.sh/v1alpha1"),
        (("name: resize", "name: Re_size"), "1: metadata.name: is 'Re_size', expected lower-case letters"),
        (("  name: resize\n", ""), "4: metadata.name: is missing, expected a text"),
        (
            ("queueLength: 8", "queueLenght: 8"),
            "18: spec.scaling.queueLenght: is not known, did you mean 'queueLength'?",
        ),
        (
            ("minReplicas: 1", "minReplicas: -1"),
            "16: spec.scaling.minReplicas: is '-1', expected a whole number, 0 or more",
        ),
        (("minReplicas: 1", "minReplicas: 9"), "spec.scaling.minReplicas: is 9, expected at most maxReplicas (4)"),
        (("maxReplicas: 4", "maxReplicas: four"), "17: spec.scaling.maxReplicas: is 'four', expected a whole number"),
        (("enabled: true", 'enabled: "true"'), "15: spec.scaling.enabled: is 'true', expected true or false"),
        (("processing: 60", "processing: [60]"), "12: spec.timeout.processing: is a list, expected a whole number"),
        (
            ("kind: Deployment", "kind: Job"),
            "21: spec.workload.kind: is 'Job', expected one of Deployment, StatefulSet",
        ),
        (("memory: 512Mi", "memory: lots"), "limits.memory: is 'lots', expected a quantity such as 512Mi or 250m"),
        (("value: photos.resize", "value: 5"), "env[0].value: is '5', expected a text: put it in quotes"),
        (
            ("image: photos:1", "command: [x]"),
            "containers[0].command: container 'asya-runtime' cannot override command",
        ),
        (("name: helper", "name: asya-sidecar"), "container name 'asya-sidecar' is reserved for the injected sidecar"),
        (("name: helper", "name: asya-runtime"), "must hold exactly one container named 'asya-runtime', but found 2"),
        (("transport: sqlite", "transport:"), "7: spec.transport: is empty, expected a text"),
    ],
)
def test_a_fault_is_one_line_with_its_place_and_what_was_expected(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in GOOD
    manifests, faults = read(tmp_path, GOOD.replace(*change, 1))
    assert manifests == []
    assert len(faults) == 1
    assert faults[0].startswith("actors.yaml:")
    assert expected in faults[0]


def test_all_faults_of_all_documents_are_found_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace("enabled: true", "enabled: 3").replace("queueLength: 8", "queueLength: 0")
    _, faults = read(tmp_path, f"{bad}---\n- no mapping\n---\n{minimal('good')}")
    assert len(faults) >= 3
    assert any("the document: is a list, expected a mapping" in fault for fault in faults)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"a: b: c", b"a: !!python/object:os.system {}", b"\x00"])
def test_a_file_that_is_no_manifest_is_a_fault_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    manifests, faults = load_manifests([tmp_path])
    assert not manifests
    assert all(fault.startswith(f"{tmp_path}/bad.yaml") for fault in faults)
    assert faults


def test_a_path_that_is_not_there_and_a_folder_without_manifests_are_faults(tmp_path: Path) -> None:
    _, faults = load_manifests([tmp_path / "missing.yaml", tmp_path])
    assert faults == [
        f"{tmp_path}/missing.yaml: no such file or folder",
        f"{tmp_path}: no .yaml or .yml file in this folder",
    ]


@pytest.mark.parametrize(
    ("text", "number"), [("512Mi", 512 * 2**20), ("1G", 1e9), ("250m", 0.25), ("2", 2.0), ("1.5Gi", 1.5 * 2**30)]
)
def test_quantities_are_those_of_kubernetes(text: str, number: float) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 Mi x", "1MB", "1e3x"])
def test_what_is_no_quantity_is_none(text: str) -> None:
    assert parse_quantity(text) is None
