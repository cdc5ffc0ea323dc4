"""Writes the tables of the documentation from the code, so that they cannot disagree with it.

Each function returns one page's part as Markdown; `write_all` puts them where the pages include them from.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import msgspec

from oncue.core.settings import Setting, SidecarSettings, describe
from oncue.events import EVENTS, Event
from oncue.transports.base import Features

FEATURES = {
    "durable": "messages outlive the process",
    "shared": "several processes on one queue",
    "atomic_ack": "acknowledging and sending are one step",
    "free_release": "a released message does not count an attempt",
    "native_delay": "delays are the store's own",
    "longest_delay": "longest delay",
    "fifo": "order of messages with one key",
    "lease_cap": "longest a message can be held",
    "max_body": "largest body",
    "headers": "headers",
    "depth": "exact depth of",
    "peek": "looking hides and counts nothing",
    "retention": "messages that are too old are dropped",
    "competing": "any free consumer gets the next message",
}
"""What each field of `Features` is called in the capability table."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """The table of the settings that all commands have."""
    return _settings(describe())


def sidecar_settings() -> str:
    """The table of the settings that a sidecar alone has, or has another default for."""
    common = set(describe())
    return _settings([setting for setting in describe(SidecarSettings) if setting not in common])


def _settings(found: Iterable[Setting]) -> str:
    rows = []
    for setting in found:
        names = "<br>".join(f"`{variable}`" for variable in setting.variables)
        shown = setting.show(setting.default)
        default = f"`{shown}`" if shown else "nothing"
        option = f"`{setting.option}`" if setting.option else ""
        rows.append((f"`{setting.name}`", names, option, default, f"{setting.description} *{setting.kind.expected}*"))
    return table(("in `oncue.yaml`", "environment", "option", "default", "what it is"), rows)


def events() -> str:
    """The table of events."""
    rows = []
    for event in EVENTS:
        own = [name for name in event.__struct_fields__ if name not in Event.__struct_fields__]
        level = logging.getLevelName(event.level).lower()
        rows.append((f"`{event.name}`", level, ", ".join(f"`{name}`" for name in own), inspect.getdoc(event) or ""))
    return table(("event", "level", "fields, besides `queue`", "meaning"), rows)


def capabilities() -> str:
    """The table of what each transport can do, read from the `Features` in each transport's file."""
    found = dict(_features())
    rows = []
    for field in msgspec.structs.fields(Features):
        heading = FEATURES[field.name]
        rows.append((heading, *(_shown(field.name, getattr(features, field.name)) for features in found.values())))
    return table(("", *found), rows)


def _features() -> Iterator[tuple[str, Features]]:
    folder = Path(importlib.import_module("oncue.transports").__file__ or "").parent
    for path in sorted(folder.iterdir()):
        name = path.stem
        if name.startswith("_") or name == "base" or (path.is_file() and path.suffix != ".py"):
            continue
        module = importlib.import_module(f"oncue.transports.{name}")
        for value in vars(module).values():
            features = value if isinstance(value, Features) else getattr(value, "features", None)
            if isinstance(features, Features):
                yield name, features
                break


def _shown(name: str, value: object) -> str:
    match value:
        case True:
            return "yes"
        case False:
            return "no"
        case None:
            return "no limit"
        case frozenset():
            return ", ".join(sorted(str(item) for item in value)) or "nothing"
        case int() if name == "max_body":
            return f"{value / 2**20:g} MiB"
        case int() | float():
            return f"{value:g} s"
        case _:
            return str(value)


def commands() -> str:
    """The reference of the command line."""
    from oncue import cli  # as late as a user's shell would import it

    context = click.Context(cli.main, info_name="oncue")
    return "\n".join(_command(cli.main, context))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    name = context.command_path
    if context.parent is not None:
        yield f"## `{name}`\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{name} {usage}\n```\n"
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            rows.append((f"`{record[0]}`", record[1]))
    if rows:
        yield table(("option", "meaning"), rows)
    if command.epilog:
        drawn = command.epilog.startswith("\b\n")
        text = command.epilog.removeprefix("\b\n")
        yield f"```text\n{text}\n```\n" if drawn else f"{text}\n"
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            child = command.get_command(context, verb)
            if child is not None and not child.hidden:
                yield from _command(child, click.Context(child, info_name=verb, parent=context))


def errors() -> str:
    """The tree of errors, as drawn at the top of its file."""
    source = Path(importlib.import_module("oncue.core.errors").__file__ or "").read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source)) or ""
    drawn = [line for line in doc.splitlines() if "├" in line or "└" in line or line.strip() == "OnCueError"]
    return "```text\n" + textwrap.dedent("\n".join(drawn)) + "\n```\n"


PAGES = {
    "settings": settings,
    "sidecar-settings": sidecar_settings,
    "events": events,
    "capabilities": capabilities,
    "commands": commands,
    "errors": errors,
}


def write_all(folder: Path) -> None:
    """Write every generated part into `folder`; a file that is the same already is left alone."""
    folder.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        path, text = folder / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
