"""The verb `oncue run`: an app as a worker, in this process or in several."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from oncue.app import App
from oncue.cli.failure import Failed
from oncue.cli.group import Verb
from oncue.cli.result import results_option
from oncue.cli.session import Session
from oncue.cli.status import Rate, StatusLine, describe, now, status_line
from oncue.cli.voice import Voice, voice_for
from oncue.core.redact import redact_url
from oncue.core.settings import Loaded as Settled
from oncue.core.settings import Settings
from oncue.loading import load_app
from oncue.logs import configure_logs
from oncue.main_loop import run_in_loop, signals
from oncue.supervisor import Loaded, Report, Supervisor, watch_parent
from oncue.worker import Counts, Worker

_DRAW = 0.2
_REPORT = 0.25
_LAST_SECONDS = 10.0
"""How long after its grace period a child may outlive its parent."""

_log = logging.getLogger("oncue.worker")


@click.command(
    cls=Verb,
    epilog="\b\n"
    "Signals:\n"
    "  SIGINT (Ctrl-C), SIGTERM, SIGHUP  take nothing more, finish what has begun within the grace\n"
    "                                    period, give back the rest uncounted, exit with 0\n"
    "  a second one                      give everything back at once, exit with 128 + its number",
)
@click.argument("target", metavar="MODULE:APP")
@click.option("--processes", metavar="N", help="Run so many processes, each with all actors (default: 1).")
@click.option("--grace", metavar="DURATION", help="How long to finish what has begun when told to stop (default: 30s).")
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics, /livez and /readyz here; process 2 on the next port, and so on.",
)
@results_option
@click.option("--report-to", type=int, hidden=True)
@click.option("--look", is_flag=True, hidden=True)
@click.pass_obj
def run(session: Session, /, *, target: str, report_to: int | None, look: bool, **options: str | None) -> None:
    """Run the app APP of MODULE as a worker, until it is told to stop.

    The current folder is importable. On a terminal a line shows how the work goes; elsewhere there are logs. A process
    that dies is started again. A transport that is away is waited for.
    """
    settled = session.load(**options)
    if settled.settings.processes > 1:
        code = _run_many(session, target, settled, options)
    else:
        code = _run_one(session, target, settled, report_to, look=look)
    click.get_current_context().exit(code)


# In this process


def _run_one(session: Session, target: str, settled: Settled, report_to: int | None, *, look: bool) -> int:
    with status_line() as line:
        _configure_logs(session, settled, line)
        app = load_app(target, Path.cwd())
        if not app.actors:
            raise Failed(f"{target} has no actors", hint="decorate a function with @app.actor", code=2)
        app.settings = settled = _laid_over(app, settled)
        if report_to is not None and settled.settings.url.lower().startswith("memory:"):
            raise Failed("memory: is the memory of one process: use one process, or a transport that is shared", code=2)
        if report_to is not None:
            return run_in_loop(_work_for_parent(app, settled.settings, report_to, look=look))
        return run_in_loop(_work(app, target, settled.settings, line))


def _laid_over(app: App, settled: Settled) -> Settled:
    """The settings for `app`: what it says of itself goes before all but the command line."""
    own = app.settings
    said = {
        name: getattr(own.settings, name)
        for name in ("url", "prefix")
        if own.sources.get(name, "").startswith("App(") and not settled.sources.get(name, "").startswith("command line")
    }
    sources = {**settled.sources, **{name: own.sources[name] for name in said}}
    return Settled(msgspec.structs.replace(settled.settings, **said), sources, settled.config)


def _configure_logs(session: Session, settled: Settled, line: StatusLine | None) -> None:
    """A person at a terminal sees the status line, and in the log only what is out of order, unless a setting says otherwise."""
    settings = settled.settings
    if session.verbose:
        settings = msgspec.structs.replace(settings, log_level="debug")
    elif line is not None and "log_level" not in settled.sources:
        settings = msgspec.structs.replace(settings, log_level="warning")
    configure_logs(settings, sys.stderr)


def _loaded(app: App, settings: Settings, address: str) -> Loaded:
    actors = [(actor.name, actor.spec(settings.prefix).name, actor.concurrency) for actor in app.actors.values()]
    return Loaded(redact_url(settings.url), actors, address)


def _queues(app: App, settings: Settings) -> Sequence[str]:
    return [actor.spec(settings.prefix).name for actor in app.actors.values()]


async def _work(app: App, target: str, settings: Settings, line: StatusLine | None) -> int:
    worker = Worker(app, settings, _queues(app, settings), look=line is not None)
    voice = voice_for(line, settings.grace)

    def tell(number: int) -> None:
        voice.told(worker.tally.counts().in_flight, again=worker.stop.requested)
        worker.tell(number)

    with signals(tell, insist=True):
        async with _drawing(line, worker.tally.counts):
            code = await worker.run(lambda address: voice.started(target, _loaded(app, settings, address), 1))
    voice.ended(worker.tally.finished, worker.tally.released, worker.tally.counts())
    return code


@asynccontextmanager
async def _drawing(line: StatusLine | None, counts: Callable[[], Counts]) -> Any:
    drawing = asyncio.create_task(_draw(line, counts)) if line is not None else None
    try:
        yield
    finally:
        if drawing is not None:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)


async def _draw(line: StatusLine, counts: Callable[[], Counts]) -> None:
    rate = Rate()
    while True:
        current = counts()
        line.show(describe(current, rate.of(current.done, now())))
        await asyncio.sleep(_DRAW)


# As the child of a process that watches


async def _work_for_parent(app: App, settings: Settings, report_to: int, *, look: bool) -> int:
    worker = Worker(app, settings, _queues(app, settings), look=look)
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.call_soon_threadsafe(worker.stop.gently, settings.grace)

    watch_parent(gone, settings.grace + _LAST_SECONDS)
    report = Report(Counts())

    def tell_parent() -> None:
        tally = worker.tally
        report.counts, report.finished, report.released = tally.counts(), tally.finished, tally.released
        report.working = bool(tally.started)
        with suppress(OSError):  # the parent is gone; what notices that is elsewhere
            os.write(report_to, msgspec.json.encode(report) + b"\n")

    def ready(address: str) -> None:
        report.loaded = _loaded(app, settings, address)
        tell_parent()

    async def keep_telling() -> None:
        while True:
            await asyncio.sleep(_REPORT)
            if worker.tally.counts() != report.counts or bool(worker.tally.started) != report.working:
                tell_parent()

    with signals(worker.tell, insist=True):
        telling = asyncio.create_task(keep_telling())
        try:
            return await worker.run(ready)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            tell_parent()


# In several processes


def _run_many(session: Session, target: str, settled: Settled, options: dict[str, str | None]) -> int:
    settings = settled.settings
    environment = dict(os.environ)
    with status_line() as line:
        _configure_logs(session, settled, line)
        if line is not None:
            environment["PYTHONUNBUFFERED"] = "1"
            if settings.log_format == "auto":
                environment["ONCUE_LOG_FORMAT"] = "text"
            if "log_level" not in settled.sources:
                environment["ONCUE_LOG_LEVEL"] = "warning"

        def command(index: int, report_to: int) -> Sequence[str]:
            words = _words(session, target, {**options, "metrics": next_address(settings.metrics, index)})
            look = ["--look"] if line is not None and index == 0 else []
            return [*words, "--report-to", str(report_to), *look]

        return asyncio.run(_supervise(command, target, settings, environment, line))


def _words(session: Session, target: str, options: dict[str, str | None]) -> Sequence[str]:
    """The command line of a child, without what its place among the children says."""
    words = [sys.executable, "-P", "-m", "oncue"]
    words += ["--transport", session.transport] if session.transport else []
    words += ["--config", session.config] if session.config else []
    words += ["--verbose"] if session.verbose else []
    words += ["run", target, "--processes", "1"]
    for name, value in options.items():
        if value is not None and name != "processes":
            words += [f"--{name}", value]
    return words


def next_address(metrics: str, index: int) -> str | None:
    """Where process number `index`, from 0, serves its metrics; None for nowhere."""
    if not metrics:
        return None
    host, _, port = metrics.rpartition(":")
    return f"{host}:{int(port) + index if int(port) else 0}"


async def _supervise(
    command: Callable[[int, int], Sequence[str]],
    target: str,
    settings: Settings,
    environment: dict[str, str],
    line: StatusLine | None,
) -> int:
    voice: Voice = voice_for(line, settings.grace)
    write = line.write if line is not None else None
    supervisor = Supervisor(command, settings.processes, settings.grace, environment=environment, write=write)

    def tell(number: int) -> None:
        voice.told(supervisor.counts().in_flight, again=supervisor.stopping)
        supervisor.tell(number)

    with signals(tell):
        async with _drawing(line, supervisor.counts):
            code = await supervisor.run(lambda loaded: voice.started(target, loaded, settings.processes))
    if code not in {1, 2}:
        voice.ended(*supervisor.ended(), supervisor.counts())
    return code
