"""Reads AsyncActor manifests (`asya.sh/v1alpha1`): the same YAML that the operator takes, checked whole, every fault with
its file, line and path.

Used by whatever runs actors from manifests; knows nothing of how they are run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from oncue.core.settings import did_you_mean

API_VERSION = "asya.sh/v1alpha1"
KIND = "AsyncActor"
RUNTIME = "asya-runtime"
SIDECAR = "asya-sidecar"

_EMPTY = "tag:yaml.org,2002:null"
"""What YAML makes of a document with nothing in it."""
_ENDINGS = frozenset({".yaml", ".yml"})
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*", re.ASCII)
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei|)")
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")
}


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas: between `least` and `most`, one for each `queue_length` messages, none `cooldown` s after the last."""

    enabled: bool = False
    least: int = 0
    most: int = 50
    polling: int = 10
    cooldown: int = 60
    queue_length: int = 5


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One actor as its manifest wants it. Times in seconds, `memory` in bytes, `cpu` in cores.

    `ignored` names, as paths, what only a cluster can give.
    """

    name: str
    place: str
    transport: str
    timeout: float | None = None
    grace: float = 30.0
    scaling: Scaling = Scaling()
    replicas: int = 1
    python: str = "python3"
    environment: Mapping[str, str] = {}
    sidecar_environment: Mapping[str, str] = {}
    folder: str = ""
    memory: int | None = None
    cpu: float | None = None
    ignored: Sequence[str] = ()


def load_manifests(paths: Iterable[Path]) -> tuple[Sequence[Manifest], Sequence[str]]:
    """The actors of all documents in these files, and in the YAML files of these folders and those below; and all faults.

    A fault is one line, `file:line: what is wrong, and what was expected`. Never raises for what is in a file.
    """
    faults: list[str] = []
    found: dict[str, Manifest] = {}
    for path in _files(paths, faults):
        for manifest in _documents(path, faults):
            first = found.setdefault(manifest.name, manifest)
            if first is not manifest:
                faults.append(
                    f"{manifest.place}: metadata.name: actor {manifest.name!r} is defined already at {first.place}"
                )
    return tuple(found.values()), faults


def parse_quantity(text: str) -> float | None:
    """The number that a Kubernetes quantity (`512Mi`, `250m`, `2`) stands for; None when it is none."""
    match = _QUANTITY.fullmatch(text.strip())
    return float(match["number"]) * _UNITS[match["unit"]] if match else None


def _files(paths: Iterable[Path], faults: list[str]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.suffix in _ENDINGS and each.is_file())
            if not files:
                faults.append(f"{path}: no .yaml or .yml file in this folder")
            yield from files
        elif path.is_file():
            yield path
        else:
            faults.append(f"{path}: no such file or folder")


def _documents(path: Path, faults: list[str]) -> Iterator[Manifest]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        nodes = [node for node in yaml.compose_all(text, yaml.SafeLoader) if node.tag != _EMPTY]
    except UnicodeDecodeError as error:
        faults.append(f"{path}: not UTF-8 text (byte {error.start})")
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror or error}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        faults.append(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem or error.context}")
    except (yaml.YAMLError, RecursionError) as error:
        faults.append(f"{path}: not YAML: {error}")
    else:
        for node in nodes:
            before = len(faults)
            manifest = _Document(path, faults).read(node)
            if len(faults) == before and manifest is not None:
                yield manifest


class _Field(msgspec.Struct, frozen=True):
    """What may stand at one place: `read` returns the value, or raises `ValueError` for another than `expected`."""

    expected: str
    read: Callable[[Any], Any]
    required: bool = False
    honoured: bool = True


def _whole(least: int) -> _Field:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError
        return value

    return _Field(f"a whole number, {least} or more", read)


def _text(*, required: bool = False, honoured: bool = True) -> _Field:
    def read(value: Any) -> str:
        if not isinstance(value, str) or (required and not value):
            raise ValueError
        return value

    return _Field("a text", read, required, honoured)


def _choice(*values: str) -> _Field:
    def read(value: Any) -> str:
        if value not in values:
            raise ValueError
        return str(value)

    return _Field("one of " + ", ".join(values) if len(values) > 1 else values[0], read)


def _flag(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise ValueError


def _quantity(value: Any) -> float:
    number = (
        parse_quantity(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    )
    if number is None:
        raise ValueError
    return number


def _anything(value: Any) -> Any:
    return value


_FLAG = _Field("true or false", _flag)
_ELSEWHERE = _Field("anything", _anything, honoured=False)
_ANYTHING = _Field("anything", _anything)
_QUANTITIES = _Field("a quantity such as 512Mi or 250m", _quantity)

_Schema = Mapping[str, "_Field | _Schema"]

_TOP: _Schema = {
    "apiVersion": _choice(API_VERSION),
    "kind": _choice(KIND),
    "metadata": {
        "name": _text(required=True),
        "namespace": _ANYTHING,
        "labels": _ANYTHING,
        "annotations": _ANYTHING,
    },
    "spec": {
        "transport": _text(required=True),
        "sidecar": {
            "image": _text(honoured=False),
            "imagePullPolicy": _choice("Always", "IfNotPresent", "Never"),
            "resources": _ELSEWHERE,
            "env": _ANYTHING,
        },
        "timeout": {"processing": _whole(0), "gracefulShutdown": _whole(0)},
        "scaling": {
            "enabled": _FLAG,
            "minReplicas": _whole(0),
            "maxReplicas": _whole(1),
            "pollingInterval": _whole(1),
            "cooldownPeriod": _whole(0),
            "queueLength": _whole(1),
            "advanced": {
                "formula": _text(honoured=False),
                "target": _text(honoured=False),
                "activationTarget": _text(honoured=False),
                "metricType": _choice("AverageValue", "Value", "Utilization"),
                "restoreToOriginalReplicaCount": _FLAG,
            },
        },
        "workload": {
            "kind": _choice("Deployment", "StatefulSet"),
            "replicas": _whole(0),
            "pythonExecutable": _text(required=False),
            "template": {"metadata": _ANYTHING, "spec": _ANYTHING},
        },
    },
}

_CONTAINER: _Schema = {
    "name": _text(required=True),
    "image": _text(),
    "env": _ANYTHING,
    "workingDir": _text(),
    "resources": {
        "limits": {"memory": _QUANTITIES, "cpu": _QUANTITIES},
        "requests": {"memory": _QUANTITIES, "cpu": _QUANTITIES},
    },
}


class _Document:
    """One YAML document on its way to a `Manifest`; faults are added to a list that all share."""

    def __init__(self, path: Path, faults: list[str]) -> None:
        self._path = path
        self._faults = faults
        self._loader = yaml.SafeLoader("")
        self._ignored: list[str] = []

    def read(self, node: yaml.Node) -> Manifest | None:
        before = len(self._faults)
        top = self._fields(node, _TOP, "")
        for name, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
            if name not in top and len(self._faults) == before:
                self._fault(node, name, f"is missing, expected {expected}")
        spec = top.get("spec", {})
        containers, pod = self._containers(node, spec)
        name = top.get("metadata", {}).get("name", "")
        if name and not _NAME.fullmatch(name):
            self._fault(node, "metadata.name", f"is {name!r}, expected lower-case letters, digits and '-', at most 63")
        runtime = containers.get(RUNTIME, {})
        self._check(node, spec)
        if len(self._faults) > before:
            return None
        scaling, timeout, limits = (
            spec.get("scaling", {}),
            spec.get("timeout", {}),
            runtime.get("resources", {}).get("limits", {}),
        )
        workload = spec["workload"]
        return Manifest(
            name=name,
            place=self._place(node),
            transport=spec["transport"],
            timeout=float(timeout["processing"]) if timeout.get("processing") else None,
            grace=float(timeout.get("gracefulShutdown", 30)),
            scaling=_scaling(scaling),
            replicas=workload.get("replicas", 1),
            python=workload.get("pythonExecutable") or "python3",
            environment=pod.get(RUNTIME, {}),
            sidecar_environment=pod.get(SIDECAR, {}),
            folder=runtime.get("workingDir", ""),
            memory=int(limits["memory"]) if "memory" in limits else None,
            cpu=limits.get("cpu"),
            ignored=tuple(self._ignored),
        )

    def _check(self, node: yaml.Node, spec: Mapping[str, Any]) -> None:
        scaling = spec.get("scaling", {})
        least, most = scaling.get("minReplicas", 0), scaling.get("maxReplicas", 50)
        if least > most:
            self._fault(node, "spec.scaling.minReplicas", f"is {least}, expected at most maxReplicas ({most})")

    def _fields(self, node: yaml.Node, schema: _Schema, path: str) -> dict[str, Any]:
        """The values of a mapping that has to fit `schema`."""
        if not isinstance(node, yaml.MappingNode):
            self._fault(node, path or "the document", f"is {_shown(node)}, expected a mapping")
            return {}
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            place = f"{path}.{name}" if path else name
            field = schema.get(name)
            if field is None:
                self._fault(key, place, f"is not known{did_you_mean(name, schema)}")
            elif name in found:
                self._fault(key, place, "is there twice")
            elif isinstance(field, _Field):
                self._read_field(found, name, field, value, place)
            else:
                found[name] = self._fields(value, field, place)
        for name, field in schema.items():
            if isinstance(field, _Field) and field.required and not any(key.value == name for key, _ in node.value):
                self._fault(node, f"{path}.{name}" if path else name, f"is missing, expected {field.expected}")
        return found

    def _read_field(self, found: dict[str, Any], name: str, field: _Field, node: yaml.Node, place: str) -> None:
        if field.read is _anything:
            found[name] = node
        else:
            try:
                found[name] = field.read(self._value(node))
            except ValueError:
                self._fault(node, place, f"is {_shown(node)}, expected {field.expected}")
        if not field.honoured:
            self._ignored.append(place)

    def _containers(
        self, node: yaml.Node, spec: Mapping[str, Any]
    ) -> tuple[Mapping[str, dict[str, Any]], Mapping[str, Mapping[str, str]]]:
        """The runtime's container and the environments of runtime and sidecar, by container name."""
        where = "spec.workload.template.spec"
        template = spec.get("workload", {}).get("template")
        pod = template.get("spec") if isinstance(template, dict) else None
        if not isinstance(pod, yaml.MappingNode):
            self._fault(pod or node, where, f"is {_shown(pod) if pod else 'missing'}, expected the spec of a pod")
            return {}, {}
        entries = {str(key.value): value for key, value in pod.value}
        self._ignored += [f"{where}.{name}" for name in entries if name != "containers"]
        if any(_name_of(each) == SIDECAR for each in _items(entries.get("initContainers"))):
            self._fault(pod, f"{where}.initContainers", f"init container name {SIDECAR!r} is reserved for operator use")
        found: dict[str, dict[str, Any]] = {}
        environments = {SIDECAR: self._environment(spec.get("sidecar", {}).get("env"), "spec.sidecar.env")}
        count = 0
        for index, container in enumerate(_items(entries.get("containers"))):
            place = f"{where}.containers[{index}]"
            name = _name_of(container)
            if name == SIDECAR:
                self._fault(
                    container,
                    place,
                    f"container name {SIDECAR!r} is reserved for the injected sidecar and cannot be defined in the AsyncActor spec",
                )
            elif name == RUNTIME:
                count += 1
                found[RUNTIME] = self._runtime(container, place)
                environments[RUNTIME] = self._environment(found[RUNTIME].get("env"), f"{place}.env")
            else:
                self._ignored.append(f"{place} ({name or 'without a name'})")
        if count != 1:
            self._fault(
                pod, f"{where}.containers", f"must hold exactly one container named {RUNTIME!r}, but found {count}"
            )
        return found, environments

    def _runtime(self, node: yaml.MappingNode, place: str) -> dict[str, Any]:
        known: list[tuple[yaml.Node, yaml.Node]] = []
        others: list[tuple[yaml.Node, yaml.Node]] = []
        for key, value in node.value:
            (known if key.value in _CONTAINER else others).append((key, value))
        for key, _ in others:
            if str(key.value) == "command":
                self._fault(
                    key,
                    f"{place}.command",
                    f"container {RUNTIME!r} cannot override command (command is managed by operator)",
                )
            else:
                self._ignored.append(f"{place}.{key.value}")
        return self._fields(yaml.MappingNode(node.tag, known, node.start_mark, node.end_mark), _CONTAINER, place)

    def _environment(self, node: yaml.Node | None, place: str) -> Mapping[str, str]:
        found: dict[str, str] = {}
        if node is not None and not isinstance(node, yaml.SequenceNode):
            self._fault(node, place, f"is {_shown(node)}, expected a list of variables")
        for index, item in enumerate(_items(node)):
            entries = {str(key.value): value for key, value in item.value}
            where, name = f"{place}[{index}]", _name_of(item)
            if not name or not _VARIABLE.fullmatch(name):
                self._fault(item, f"{where}.name", f"is {name!r}, expected the name of a variable")
            elif "valueFrom" in entries:
                self._ignored.append(f"{where}.valueFrom ({name})")
            else:
                value = entries.get("value")
                text = "" if value is None else self._value(value)
                if isinstance(text, str):
                    found[name] = text
                else:
                    self._fault(item, f"{where}.value", f"is {_shown(value)}, expected a text: put it in quotes")
        return found

    def _value(self, node: yaml.Node) -> Any:
        return self._loader.construct_object(node, deep=True)

    def _place(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"

    def _fault(self, node: yaml.Node, path: str, text: str) -> None:
        self._faults.append(f"{self._place(node)}: {path}: {text}")


def _scaling(found: Mapping[str, Any]) -> Scaling:
    return Scaling(
        enabled=found.get("enabled", False),
        least=found.get("minReplicas", 0),
        most=found.get("maxReplicas", 50),
        polling=found.get("pollingInterval", 10),
        cooldown=found.get("cooldownPeriod", 60),
        queue_length=found.get("queueLength", 5),
    )


def _items(node: yaml.Node | None) -> Sequence[yaml.MappingNode]:
    return (
        [each for each in node.value if isinstance(each, yaml.MappingNode)]
        if isinstance(node, yaml.SequenceNode)
        else []
    )


def _name_of(node: yaml.MappingNode) -> str:
    return next((str(value.value) for key, value in node.value if key.value == "name"), "")


def _shown(node: yaml.Node | None) -> str:
    if node is None:
        return "missing"
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
