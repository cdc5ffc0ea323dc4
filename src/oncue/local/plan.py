"""From manifests to what is started here: which Python, in which folder, with which environment. Checks all of it first."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from oncue.core.errors import ConfigError, SettingsError
from oncue.core.settings import Settings, did_you_mean
from oncue.local.settings import ELSEWHERE, actor_settings
from oncue.manifests import Manifest, Scaling
from oncue.outgoing import ENDS, ERROR_END, HAPPY_END

_HANDLER = ("ONCUE_HANDLER", "ASYA_HANDLER")
_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_PLACED = tuple(f"{prefix}_SOCKET_{name}" for prefix in ("ONCUE", "ASYA") for name in ("DIR", "NAME", "CHMOD"))
"""What says where a runtime's socket is, which is chosen here."""
_ENDS_OF = {"ASYA_ACTOR_HAPPY_END": HAPPY_END, "ASYA_ACTOR_ERROR_END": ERROR_END}
_TIMEOUT = 300.0
_PRESENT = re.compile(r"^apiVersion:\s*[\"']?asya\.sh/", re.MULTILINE)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One actor as it is started here. Times in seconds.

    environment: what its runtime gets on top of what this process has.
    sidecar: what its manifest sets for the sidecar.
    """

    name: str
    place: str
    python: str
    folder: Path
    handler: str
    environment: Mapping[str, str]
    sidecar: Mapping[str, str]
    scaling: Scaling
    replicas: int
    grace: float
    timeout: float

    @property
    def is_end(self) -> bool:
        """Whether it takes the place of one of the built-in end actors."""
        return self.name in ENDS

    def same(self, other: Plan) -> bool:
        """Whether nothing has to be started anew when the one replaces the other."""
        return msgspec.structs.replace(self, place="") == msgspec.structs.replace(other, place="")


class Planned(msgspec.Struct, frozen=True):
    """The plans for all manifests that are right; what is wrong, a line each; and what will not be honoured, a line each."""

    plans: Sequence[Plan]
    faults: Sequence[str]
    notes: Sequence[str]


def plan(manifests: Sequence[Manifest], here: Path, *, grace: float | None = None) -> Planned:
    """What is to be started for these manifests when the current folder is `here`. Blocks for looks at files.

    `grace` is that of all, instead of each manifest's own.
    """
    faults: list[str] = []
    plans: list[Plan] = []
    ignored: dict[str, list[str]] = {}
    names = {manifest.name for manifest in manifests} | ENDS
    for manifest in manifests:
        before = len(faults)
        folder, unheeded = _folder(manifest, here, faults)
        _check_handler(manifest, faults)
        _check_ends(manifest, names, faults)
        python = _python(manifest, folder, faults)
        for path in _ignored(manifest, unheeded):
            ignored.setdefault(path, []).append(manifest.name)
        made = _plan(manifest, python, folder, grace)
        _check_sidecar(made, faults)
        if len(faults) == before:
            plans.append(made)
    return Planned(plans, faults, [_note(path, actors, len(manifests)) for path, actors in ignored.items()])


def manifests_here(here: Path) -> Sequence[Path]:
    """The files of the folder `here`, not below, that are manifests of actors. Blocks."""
    found = sorted(path for path in here.iterdir() if path.suffix in {".yaml", ".yml"} and path.is_file())
    return [path for path in found if _PRESENT.search(path.read_text(encoding="utf-8", errors="replace"))]


def _plan(manifest: Manifest, python: str, folder: Path, grace: float | None) -> Plan:
    own = {name: text for name, text in manifest.environment.items() if name not in _PLACED}
    if manifest.memory is not None:
        own.setdefault("ONCUE_MEMORY_LIMIT", str(manifest.memory))
    if manifest.name in ENDS:
        own.setdefault("ASYA_ENABLE_VALIDATION", "false")  # as the operator does
    return Plan(
        name=manifest.name,
        place=manifest.place,
        python=python,
        folder=folder,
        handler=_handler(manifest),
        environment=own,
        sidecar=manifest.sidecar_environment,
        scaling=manifest.scaling,
        replicas=manifest.replicas,
        grace=manifest.grace if grace is None else grace,
        timeout=manifest.timeout or _TIMEOUT,
    )


def _handler(manifest: Manifest) -> str:
    return next((text for name in _HANDLER if (text := manifest.environment.get(name, ""))), "")


def _check_handler(manifest: Manifest, faults: list[str]) -> None:
    handler = _handler(manifest)
    if handler and _FORM.fullmatch(handler):
        return
    said = f"is {handler!r}" if handler else "is missing"
    elsewhere = next((path for path in manifest.ignored if path.endswith(tuple(f"({name})" for name in _HANDLER))), "")
    more = f"; what {elsewhere} says is only known in a cluster" if elsewhere else ""
    faults.append(
        f"{manifest.place}: actor {manifest.name}: ASYA_HANDLER in the env of asya-runtime {said}, "
        f"expected module.function or module.Class.method{more}"
    )


def _check_ends(manifest: Manifest, names: set[str], faults: list[str]) -> None:
    for variable in _ENDS_OF:
        actor = manifest.sidecar_environment.get(variable)
        if actor and actor not in names:
            faults.append(
                f"{manifest.place}: actor {manifest.name}: {variable} in spec.sidecar.env is {actor!r}, "
                f"but no manifest defines that actor{did_you_mean(actor, names)}"
            )


def _check_sidecar(made: Plan, faults: list[str]) -> None:
    try:
        actor_settings(made, Path("/tmp"), Settings())  # noqa: S108  # any folder whose path is short
    except SettingsError as error:
        found = [fault.removeprefix("environment: ") for fault in error.faults]
        faults += [f"{made.place}: actor {made.name}: spec.sidecar.env: {fault}" for fault in found]
    except ConfigError as error:
        faults.append(f"{made.place}: actor {made.name}: spec.sidecar.env: {error}")


def _python(manifest: Manifest, folder: Path, faults: list[str]) -> str:
    """The Python that runs the handler; `python3`, the default, is the one that runs OnCue or that of the active environment."""
    name = manifest.python
    if name == "python3" and "VIRTUAL_ENV" not in os.environ:
        return sys.executable
    if "/" in name:
        path = folder / Path(name).expanduser()
        found = str(path) if os.access(path, os.X_OK) and path.is_file() else None
    else:
        found = shutil.which(name, path=manifest.environment.get("PATH"))
    if found is None:
        where = "there is no such program" if "/" in name else "it is not in PATH"
        faults.append(
            f"{manifest.place}: actor {manifest.name}: spec.workload.pythonExecutable is {name!r}, but {where}"
        )
    return found or ""


def _folder(manifest: Manifest, here: Path, faults: list[str]) -> tuple[Path, str]:
    """The working folder, and the one that the manifest names if it is not heeded, because only a container has it."""
    beside = Path(manifest.place.rpartition(":")[0]).absolute().parent
    if manifest.folder:
        for base in (here, beside):
            if (base / manifest.folder).is_dir():
                return (base / manifest.folder).resolve(), ""
        if not manifest.folder.startswith("/"):
            faults.append(
                f"{manifest.place}: actor {manifest.name}: workingDir is {manifest.folder!r}, "
                f"but there is no such folder in {here} or {beside}"
            )
    module = _handler(manifest).partition(".")[0]
    found = next((base for base in (here, beside) if module and _has(base, module)), here)
    return found, manifest.folder


def _has(folder: Path, module: str) -> bool:
    return (folder / f"{module}.py").is_file() or (folder / module).is_dir()


def _ignored(manifest: Manifest, folder: str) -> Iterator[str]:
    yield f"spec.transport ({manifest.transport})"
    for path in manifest.ignored:
        yield path.removeprefix("spec.workload.template.")
    if folder:
        yield f"workingDir ({folder})"
    if manifest.cpu is not None:
        yield "resources.limits.cpu"
    for name in _PLACED:
        if name in manifest.environment:
            yield f"env {name}"
    for name in manifest.sidecar_environment:
        if name.startswith(ELSEWHERE):
            yield f"spec.sidecar.env {name}"


def _note(path: str, actors: Sequence[str], count: int) -> str:
    """A line about something without effect here."""
    who = "" if len(actors) == count else f" ({', '.join(actors)})"
    return f"{path}{who}"
