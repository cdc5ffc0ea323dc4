"""The verb `oncue up`: actors from manifests, as processes on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import msgspec

from oncue import __version__
from oncue.cli.failure import Failed, say
from oncue.cli.group import Verb
from oncue.cli.output import plural
from oncue.cli.result import results_option
from oncue.cli.session import Session
from oncue.core.errors import OnCueError, SettingsError
from oncue.core.redact import redact_url
from oncue.core.settings import Loaded, Settings
from oncue.core.times import format_duration, timestamp
from oncue.local.lines import Prefixed, Records
from oncue.local.plan import Plan, Planned, manifests_here, plan
from oncue.local.state import HOME, Running, Taken, answering, ask, claim, find, making
from oncue.local.supervisor import Local, Options
from oncue.local.table import LiveTable, live_table
from oncue.logs import configure_logs
from oncue.main_loop import run_in_loop, signals
from oncue.manifests import load_manifests

_log = logging.getLogger("oncue.local")

_LOG = "up.log"
_DRAW = 1.0
_READY = b"ready\n"
_LAST_LINES = 5
_SOON = 3.0
"""Seconds after which somebody who waits for a start is told what it waits for itself."""


@click.command(
    cls=Verb,
    epilog="\b\n"
    "Signals:\n"
    "  SIGINT (Ctrl-C), SIGTERM, SIGHUP  take nothing more, finish what has begun within the grace\n"
    "                                    period, give back the rest uncounted, exit with 0\n"
    "  a second one                      give everything back at once, exit with 128 + its number",
)
@click.argument("paths", metavar="[PATH]…", nargs=-1, type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Restart what changed when code or manifests are edited.")
@click.option("--isolate", is_flag=True, help="Run a sidecar process beside each runtime, as in a pod.")
@click.option("-d", "--detach", is_flag=True, help="Return when everything was started; oncue down ends it.")
@click.option(
    "--grace",
    metavar="DURATION",
    help="How long to finish what has begun when told to stop (default: each manifest's).",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve /metrics, /livez and /readyz here.")
@results_option
@click.option("--report-to", type=int, hidden=True)
@click.pass_obj
def up(
    session: Session,
    /,
    *,
    paths: tuple[Path, ...],
    watch: bool,
    isolate: bool,
    detach: bool,
    report_to: int | None,
    **options: str | None,
) -> None:
    """Run the actors of AsyncActor manifests here, as processes of this machine.

    PATH is a manifest or a folder of them (default: the manifests in the current folder). Each replica is a process with
    the actor's own Python; as many are started as the depth of the queue asks for. Results are kept beside the queues.
    """
    settled = session.load(**options)
    settings = _with_results(settled)
    given = settings.grace if "grace" in settled.sources else None
    read = partial(_planned, paths, grace=given)
    planned = read()
    if planned.faults:
        raise SettingsError(planned.faults)
    if detach:
        _detach(session, paths, watch=watch, isolate=isolate, options=options)
        return
    chosen = Options(isolate=isolate, watch=read if watch else None, files=partial(_files, paths))
    grace = max(each.grace for each in planned.plans)
    with claim(HOME.absolute(), redact_url(settings.url), grace, timestamp()) as running, live_table() as table:
        _configure_logs(session, settled, settings, table)
        code = run_in_loop(_run(settings, planned, chosen, running, table, report_to))
    click.get_current_context().exit(code)


def _with_results(settled: Loaded) -> Settings:
    """The settings, with results beside the queues unless somebody says otherwise."""
    settings = settled.settings
    scheme = settings.url.partition(":")[0].lower()
    if scheme == "memory":
        raise Failed(
            "memory: is the memory of one process: use a transport that is shared",
            hint="the default is a file, sqlite:///.oncue/oncue.db",
            code=2,
        )
    if scheme == "sqlite" and "results" not in settled.sources:
        return msgspec.structs.replace(settings, results=settings.url)
    return settings


def _planned(paths: Sequence[Path], *, grace: float | None) -> Planned:
    """What the manifests at `paths` come to, or those of the current folder."""
    here = Path.cwd()
    found = list(paths) or manifests_here(here)
    if not found:
        return Planned([], [f"there is no AsyncActor manifest in {here}: name a file or a folder"], [])
    manifests, faults = load_manifests(found)
    planned = plan(manifests, here, grace=grace)
    if not manifests and not faults:
        faults = [f"{', '.join(map(str, paths))}: no AsyncActor manifest in there"]
    return Planned(planned.plans, [*faults, *planned.faults], planned.notes)


def _files(paths: Sequence[Path]) -> Sequence[Path]:
    """The files that the manifests are in at this moment."""
    if not paths:
        return manifests_here(Path.cwd())
    found: list[Path] = []
    for path in paths:
        found += [each for ending in ("yaml", "yml") for each in path.rglob(f"*.{ending}")] if path.is_dir() else [path]
    return found


# In this process


def _configure_logs(session: Session, settled: Loaded, settings: Settings, table: LiveTable | None) -> None:
    """A person at a terminal sees in the log only what is out of order, unless a setting says otherwise."""
    if session.verbose:
        settings = msgspec.structs.replace(settings, log_level="debug")
    elif table is not None and "log_level" not in settled.sources:
        settings = msgspec.structs.replace(settings, log_level="warning")
    configure_logs(settings, sys.stderr)


def _lines(settings: Settings, plans: Sequence[Plan], table: LiveTable | None) -> Prefixed | Records:
    if settings.log_format == "json" or (settings.log_format == "auto" and table is None):
        return Records()
    return Prefixed([each.name for each in plans], coloured=table is not None and not os.environ.get("NO_COLOR"))


async def _run(
    settings: Settings,
    planned: Planned,
    options: Options,
    running: Running,
    table: LiveTable | None,
    report_to: int | None,
) -> int:
    lines = _lines(settings, planned.plans, table)
    local = Local(settings, planned.plans, Path(running.sockets), options, lines)
    voice = _Sentences(running.grace) if table is not None else _Records(running.grace)

    def tell(number: int) -> None:
        voice.told(again=local.stop.requested)
        local.tell(number)

    started = asyncio.Event()

    def ready() -> None:
        voice.started(settings, planned)
        started.set()
        if report_to is not None:
            os.write(report_to, _READY)
            os.close(report_to)

    drawing = asyncio.create_task(_draw(table, local, started))
    try:
        with signals(tell):
            async with answering(running, local.report):
                code = await local.run(ready)
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
    voice.ended()
    return code


async def _draw(table: LiveTable | None, local: Local, started: asyncio.Event) -> None:
    await started.wait()
    while table is not None:
        table.show(await local.report())
        await asyncio.sleep(_DRAW)


class _Sentences:
    """On standard error, for a person."""

    def __init__(self, grace: float) -> None:
        self._grace = format_duration(grace)

    def started(self, settings: Settings, planned: Planned) -> None:
        _write(f"oncue {__version__} runs {plural(len(planned.plans), 'actor')} on {redact_url(settings.url)}")
        if planned.notes:
            _write(f"Without effect here: {', '.join(planned.notes)}.")
        _write(f"Ctrl-C finishes what has begun (up to {self._grace}); again, it stops at once.")

    def told(self, *, again: bool) -> None:
        text = "Stopping at once." if again else f"Stopping, for up to {self._grace}. Ctrl-C again: at once."
        _write(text)

    def ended(self) -> None:
        _write("Stopped.")


def _write(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # click would look for the terminal itself, behind the table


class _Records:
    """In the log, for machines."""

    def __init__(self, grace: float) -> None:
        self._grace = grace

    def started(self, settings: Settings, planned: Planned) -> None:
        names = ", ".join(each.name for each in planned.plans)
        _record("up.started", version=__version__, url=redact_url(settings.url), actors=names, pid=os.getpid())
        for note in planned.notes:
            _record("manifest.unheeded", field=note)

    def told(self, *, again: bool) -> None:
        _record("up.stopping", grace=0.0 if again else self._grace)

    def ended(self) -> None:
        _record("up.stopped")


def _record(name: str, **fields: object) -> None:
    _log.info(name, extra={"fields": fields})


# In another process


def _detach(
    session: Session, paths: Sequence[Path], *, watch: bool, isolate: bool, options: dict[str, str | None]
) -> None:
    """Start this verb in a process of its own and return when that has started everything."""
    home = HOME.absolute()
    if (running := find(home)) is not None:
        raise Taken(running)
    words = [sys.executable, "-P", "-m", "oncue"]
    words += ["--transport", session.transport] if session.transport else []
    words += ["--config", session.config] if session.config else []
    words += ["--verbose"] if session.verbose else []
    words += ["up", *(["--watch"] if watch else []), *(["--isolate"] if isolate else [])]
    words += [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    reading, writing = os.pipe()
    with making(home), (home / _LOG).open("wb") as log:
        child = subprocess.Popen(  # noqa: S603  # this very program
            [*words, "--report-to", str(writing), "--", *map(str, paths)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    try:
        told = _told(reading, home)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if told != _READY:
        code = child.wait()
        _show_end(home / _LOG)
        raise Failed("nothing was started", hint=f"see {HOME / _LOG}", code=code or 1)
    child.returncode = 0  # it is on its own from here
    click.echo(f"Started as process {child.pid}; its log is {HOME / _LOG}, and oncue down ends it.", err=True)


def _told(reading: int, home: Path) -> bytes:
    """What the new process says when it has started everything; nothing if it ends before. What keeps it is shown once."""
    shown: set[str] = set()
    with os.fdopen(reading, "rb") as pipe:
        while not select.select([pipe], [], [], _SOON)[0]:
            for error in _errors(home) - shown:
                shown.add(error)
                say(f"still starting: {error}", hint="oncue down ends it")
        return pipe.read()


def _errors(home: Path) -> set[str]:
    """What goes wrong for what runs there, as far as it says."""
    try:
        running = find(home)
        return {each.error for each in ask(running) if each.error} if running is not None else set()
    except OnCueError:
        return set()


def _show_end(log: Path) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines[-_LAST_LINES:]:
        say(line.removeprefix("oncue: "))
