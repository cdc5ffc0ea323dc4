"""The settings: one schema that reads, checks, defaults and documents itself.

A value comes from the first of these that has it: the command line, the environment (`ONCUE_…`), the file `oncue.yaml`,
the default. Every fault of every source is reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from oncue.core.errors import SettingsError
from oncue.core.redact import HIDDEN, redact, redact_url
from oncue.core.schema import (
    VARIABLES,
    Setting,
    Settings,
    SidecarSettings,
    describe,
    known_names,
    known_variables,
)

__all__ = ["InForce", "Loaded", "Setting", "Settings", "SidecarSettings", "describe", "did_you_mean", "load_settings"]

CONFIG_FILE = "oncue.yaml"
CONFIG_VARIABLE = "ONCUE_CONFIG"

# What Kubernetes puts into every pod for a service whose name begins with "oncue"; nobody set these on purpose.
_SERVICE_LINK = re.compile(r"ONCUE(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_[A-Z0-9_]+)?)")
_SERVICE_PORT = re.compile(r"ONCUE(_[A-Z0-9_]+)?_PORT")


class InForce(msgspec.Struct, frozen=True):
    """One setting's value in force, ready to be shown, and where it came from."""

    name: str
    value: str
    source: str


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and for each that is not the default where its value came from."""

    settings: Settings
    sources: Mapping[str, str]
    config: Path | None

    def in_force(self) -> Sequence[InForce]:
        """Every setting's value, without secrets, and its source."""
        return [
            InForce(
                setting.name,
                setting.show(getattr(self.settings, setting.name)),
                self.sources.get(setting.name, "default"),
            )
            for setting in describe(type(self.settings))
        ]


class _Found(msgspec.Struct, frozen=True):
    """A raw value and where it was found; `name` is what it is called there."""

    setting: Setting
    raw: object
    name: str
    place: str


def load_settings(
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | str | None = None,
    options: Mapping[str, object] | None = None,
    folder: Path | str = ".",
    schema: type[Settings] = Settings,
) -> Loaded:
    """The settings from all sources, those of `schema`; those of other commands may stand beside them, unread.

    `options` are values given on the command line or in code, by setting name; None means not given. `config` is a file
    that must be there; without it, the file that `ONCUE_CONFIG` names, or `oncue.yaml` in `folder` if there is one.
    Raise `SettingsError` with every fault found. Reads a file, otherwise pure; `environ` is the process's by default.
    """
    environ = os.environ if environ is None else environ
    faults: list[str] = []
    path = _config_path(environ, config, Path(folder))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for found in chain(
        _from_file(path, schema, faults),
        _from_environment(environ, schema, faults),
        _from_options(options or {}, schema, faults),
    ):
        value = _read(found, faults)
        if value is not None:
            values[found.setting.name] = value
            sources[found.setting.name] = f"{found.place} {found.name}"
    if faults:
        raise SettingsError(faults)
    return Loaded(schema(**values), sources, path)


def _config_path(environ: Mapping[str, str], config: Path | str | None, folder: Path) -> Path | None:
    named = config or environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    path = folder / CONFIG_FILE
    return path if path.exists() else None


def _from_file(path: Path | None, schema: type[Settings], faults: list[str]) -> Iterator[_Found]:
    if path is None:
        return
    from oncue.core.yamlfile import read_yaml_mapping  # only then is a YAML parser worth its import

    by_name = {setting.name: setting for setting in describe(schema)}
    entries, problems = read_yaml_mapping(path)
    faults.extend(problems)
    for entry in entries:
        setting = by_name.get(entry.name)
        if setting is not None:
            yield _Found(setting, entry.value, entry.name, entry.place)
        elif entry.name not in known_names():
            faults.append(f"{entry.place}: unknown setting {entry.name!r}{did_you_mean(entry.name, known_names())}")


def _from_environment(environ: Mapping[str, str], schema: type[Settings], faults: list[str]) -> Iterator[_Found]:
    for setting in describe(schema):
        given = [
            _Found(setting, environ[name], name, "environment")
            for name in setting.variables
            if name in environ and (environ[name] != "" or (setting.kind.blank and name == setting.variable))
        ]
        values = {found.name: _read(found, []) for found in given}
        if len({repr(value) for value in values.values()}) > 1:
            shown = " and ".join(f"{name}={_shown(setting, environ[name])}" for name in values)
            faults.append(f"environment: {shown} are two names of one setting and differ: keep one of them")
        if given:
            yield given[0]
    known = known_variables() | {CONFIG_VARIABLE}
    for name in sorted(environ):
        if name.startswith(VARIABLES) and name not in known and not _is_service_link(name, environ[name]):
            faults.append(f"environment: unknown setting {name}{did_you_mean(name, known, prefix=VARIABLES)}")


def _is_service_link(name: str, value: str) -> bool:
    if _SERVICE_PORT.fullmatch(name):
        return value.startswith(("tcp://", "udp://", "sctp://"))
    return _SERVICE_LINK.fullmatch(name) is not None


def _from_options(options: Mapping[str, object], schema: type[Settings], faults: list[str]) -> Iterator[_Found]:
    by_name = {setting.name: setting for setting in describe(schema)}
    for name, raw in options.items():
        setting = by_name.get(name)
        if setting is None:
            faults.append(f"unknown setting {name!r}{did_you_mean(name, by_name)}")
        elif raw is not None:
            yield _Found(setting, raw, setting.option or name, "command line")


def _read(found: _Found, faults: list[str]) -> Any:
    kind = found.setting.kind
    try:
        return kind.read(found.raw)
    except ValueError:
        shown = _shown(found.setting, found.raw)
        faults.append(f"{found.place}: {found.name} is {shown}, expected {kind.expected}")
        return None


def _shown(setting: Setting, raw: object) -> str:
    if not isinstance(raw, str | int | float | bool | None):
        return f"a {type(raw).__name__}"
    if raw is None:
        return "empty"
    text = repr(raw)
    if setting.secret:
        return redact_url(text) if isinstance(raw, str) else HIDDEN
    shown = redact(text)
    return shown if len(shown) <= 100 else shown[:99] + "…"


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """A suggestion to add to an error text: `, did you mean 'x'?`, or nothing when no known name is close.

    Case and `-` against `_` make no difference, and neither does a `prefix` that names may have in common.
    """
    import difflib  # needed only when something went wrong

    plain = {_plain(candidate, prefix): candidate for candidate in sorted(known)}
    close = difflib.get_close_matches(_plain(name, prefix), plain, n=1, cutoff=0.6)
    return f", did you mean {plain[close[0]]!r}?" if close else ""


def _plain(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("-", "_")
