"""The verb `oncue doctor`: what this machine has, which settings are in force and why, and whether the transport answers."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from oncue import __version__
from oncue.cli.failure import FAILED, MISUSED
from oncue.cli.group import Verb
from oncue.cli.output import as_json_option, one_line, write_json
from oncue.cli.session import Session
from oncue.core.errors import OnCueError, SettingsError
from oncue.core.redact import redact_url
from oncue.core.settings import Loaded, Settings
from oncue.core.times import timestamp
from oncue.transports import open_transport, schemes
from oncue.transports.examination import Examined, State

_MARKS: dict[State, tuple[str, str]] = {"ok": ("ok", "green"), "note": ("--", "yellow"), "bad": ("!!", "red")}
_SCHEMES = {"redis": "redis", "rabbitmq": "amqp", "sqs": "sqs", "nats": "nats", "kafka": "kafka", "pubsub": "pubsub"}
"""The extra of each broker to a scheme of its URLs."""

_ANSWER_WITHIN = 10.0
_LITTLE_ROOM = 200 * 2**20
_FEW_FILES = 256
_EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: `ok`, `note` (works, but worth knowing) or `bad`."""

    part: str
    state: State
    name: str
    text: str


@click.command(cls=Verb)
@as_json_option
@click.pass_obj
def doctor(session: Session, *, as_json: bool) -> None:
    """Check this machine, the settings and the transport.

    Shows Python and what is installed, every setting in force and where it came from, whether the transport answers and
    how fast, the clock, and limits that matter. Changes nothing. Exit code 1 when something is wrong, 2 when a setting is.
    """
    findings = [*_installed(), *_machine()]
    loaded, faults = _load(session)
    findings += faults
    if loaded is not None:
        findings += session.run(_transport(loaded.settings), loaded.settings)
    if as_json:
        settings = [] if loaded is None else loaded.in_force()
        write_json({"checks": findings, "settings": settings})
    else:
        _show(findings, loaded)
    if any(finding.state == "bad" for finding in findings):
        click.get_current_context().exit(MISUSED if faults else FAILED)


def _load(session: Session) -> tuple[Loaded | None, list[Finding]]:
    try:
        return session.load(), []
    except SettingsError as error:
        return None, [Finding("settings", "bad", "fault", fault) for fault in error.faults]


def _installed() -> Iterator[Finding]:
    supported = sys.version_info >= (3, 11)
    yield Finding("installed", "ok", "oncue", f"{__version__} in {Path(__file__).parents[1]}")
    python = f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}"
    yield Finding("installed", "ok" if supported else "bad", "python", python)
    found = _version("uvloop")
    text = f"{found}, the faster event loop" if found else "not installed: workers use asyncio's own event loop"
    yield Finding("installed", "ok" if found else "note", "uvloop", text)
    known = [*schemes(), "s3"]
    later: list[str] = []
    for extra, requirement in _extras():
        found = _version(requirement)
        scheme = _SCHEMES.get(extra, extra)
        if scheme not in known:
            later.append(extra)
        elif found:
            yield Finding("installed", "ok", extra, f"{requirement} {found}, for {scheme}: URLs")
        else:
            yield Finding(
                "installed", "note", extra, f"not installed, for {scheme}: URLs: pip install 'oncue[{extra}]'"
            )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _extras() -> Iterator[tuple[str, str]]:
    """Each extra with the distribution that it stands for."""
    try:
        requirements = importlib.metadata.requires("oncue") or ()
    except importlib.metadata.PackageNotFoundError:  # run from its sources, without having been installed
        return
    for requirement in requirements:
        match = re.match(r"(?P<name>[\w.-]+).*extra == ['\"](?P<extra>\w+)['\"]", requirement)
        if match and match["extra"] != "all" and match["name"] != "oncue":
            yield match["extra"], match["name"]


def _machine() -> Iterator[Finding]:
    now = datetime.now(UTC)
    plausible = now > _EARLIEST
    zone = now.astimezone().strftime("%Z, %z")
    yield Finding(
        "machine",
        "ok" if plausible else "bad",
        "clock",
        f"{timestamp(now)} (local time zone {zone})"
        + ("" if plausible else ": that is in the past, and delays depend on it"),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "machine", "ok", "system", f"{platform.system()} {platform.release()}, {cores} cores for this process"
    )
    files = _open_files()
    if files is not None:
        state: State = "ok" if files >= _FEW_FILES else "note"
        yield Finding("machine", state, "open files", f"at most {files} in one process")


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


async def _transport(settings: Settings) -> Sequence[Finding]:
    shown = redact_url(settings.url)
    findings = [Finding("transport", "ok", "url", shown)]
    if settings.url.lower().startswith("sqlite:"):
        path, more = _sqlite(settings.url)
        findings += more
        if path is None or not path.exists():
            return findings
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            findings += await _round_trip(settings.url)
    except TimeoutError:
        findings.append(Finding("transport", "bad", "answer", f"none within {_ANSWER_WITHIN:g} s"))
    except OnCueError as error:
        findings.append(Finding("transport", "bad", "answer", str(error)))
    return findings


async def _round_trip(url: str) -> Sequence[Finding]:
    started = time.perf_counter()
    transport = await open_transport(url)
    try:
        opened = time.perf_counter()
        queues = await transport.queues()
        answered = time.perf_counter()
        features = transport.features
        remarks = await transport.examine() if isinstance(transport, Examined) else ()
    finally:
        await transport.close()
    body = "no limit" if features.max_body is None else f"{features.max_body / 2**20:g} MiB"
    findings = [
        Finding(
            "transport",
            "ok",
            "answer",
            f"connected in {1000 * (opened - started):.1f} ms, a question answered in {1000 * (answered - opened):.1f} ms",
        ),
        Finding("transport", "ok", "queues", str(len(queues))),
        Finding("transport", "ok", "largest body", body),
    ]
    if not (features.durable and features.shared):
        text = "messages end with their process: for tests, and for apps that work in the process that sends"
        findings.append(Finding("transport", "note", "durable", text))
    findings += [Finding("transport", remark.state, remark.name, remark.text) for remark in remarks]
    return findings


def _sqlite(url: str) -> tuple[Path | None, list[Finding]]:
    from oncue.transports.sqlite.file import OLDEST_SQLITE, network_file_system, path_of

    oldest = ".".join(map(str, OLDEST_SQLITE))
    new_enough = sqlite3.sqlite_version_info >= OLDEST_SQLITE
    version = f"{sqlite3.sqlite_version} ({oldest} or newer is needed)"
    findings = [Finding("transport", "ok" if new_enough else "bad", "SQLite", version)]
    try:
        path = path_of(url)
    except OnCueError as error:
        return None, [*findings, Finding("transport", "bad", "file", str(error))]
    there = path.exists()
    folder = next(each for each in path.parents if each.exists())
    if there:
        size = f"{path}, {path.stat().st_size / 2**20:.1f} MiB"
        findings.append(Finding("transport", "ok", "file", size))
    elif os.access(folder, os.W_OK):
        findings.append(
            Finding("transport", "note", "file", f"{path} is not there yet; the first send or run makes it")
        )
    else:
        findings.append(Finding("transport", "bad", "file", f"{path} cannot be made: {folder} may not be written"))
    kind = network_file_system(folder)
    if kind:
        text = f"{folder} is on a network file system ({kind}), where SQLite cannot lock safely"
        findings.append(Finding("transport", "bad", "file system", text))
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free > _LITTLE_ROOM else "bad"
    findings.append(Finding("transport", state, "free space", f"{free / 2**30:.1f} GiB in {folder}"))
    return path, findings


def _show(findings: Sequence[Finding], loaded: Loaded | None) -> None:
    width = max(len(finding.name) for finding in findings)
    for part in dict.fromkeys(finding.part for finding in findings):
        click.echo(_heading(part))
        for finding in findings:
            if finding.part == part:
                mark, colour = _MARKS[finding.state]
                shown = click.style(mark, fg=colour) if sys.stdout.isatty() else mark
                click.echo(f"  {shown} {finding.name.ljust(width)}  {one_line(finding.text)}")
        click.echo()
    if loaded is not None:
        click.echo(_heading("settings"))
        settings = loaded.in_force()
        longest = max(len(each.name) for each in settings)
        values = max(len(each.value or "-") for each in settings)
        for each in settings:
            click.echo(f"     {each.name.ljust(longest)}  {(each.value or '-').ljust(values)}  {each.source}")
        click.echo()
    bad = sum(finding.state == "bad" for finding in findings)
    click.echo("All is well." if not bad else f"{bad} of {len(findings)} checks are bad.")


def _heading(part: str) -> str:
    return click.style(part, bold=True) if sys.stdout.isatty() else part
