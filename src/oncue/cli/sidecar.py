"""The verb `oncue sidecar`: what stands beside a runtime, set up from the environment."""

from __future__ import annotations

import sys

import click
import msgspec

from oncue.cli.failure import Failed
from oncue.cli.group import Verb
from oncue.cli.session import Session
from oncue.core.asya import load_sidecar_settings
from oncue.core.errors import LoadError
from oncue.core.settings import SidecarSettings
from oncue.logs import configure_logs
from oncue.main_loop import run_in_loop, signals
from oncue.sidecar.process import Sidecar


@click.command(
    cls=Verb,
    epilog="\b\n"
    "Signals:\n"
    "  SIGINT (Ctrl-C), SIGTERM, SIGHUP  take nothing more, finish what has begun within the grace\n"
    "                                    period, give back the rest uncounted, exit with 0\n"
    "  a second one                      give everything back at once, exit with 128 + its number",
)
@click.option("--grace", metavar="DURATION", help="How long to finish what has begun when told to stop (default: 30s).")
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics and health here (default: :8080).")
@click.option("--results", metavar="URL", help="Where a built-in end actor keeps results.")
@click.pass_obj
def sidecar(session: Session, /, **options: str | None) -> None:
    """Take the messages of one actor to its runtime, and move the results on, until told to stop.

    The settings come from the environment, under their ONCUE_ names or Asya's: ONCUE_ACTOR_NAME names the actor. It waits
    for the runtime at the start. A handler that cannot be loaded ends it with exit code 1.
    """
    settings, _ = load_sidecar_settings(config=session.config, options={"url": session.transport, **options})
    if session.verbose:
        settings = msgspec.structs.replace(settings, log_level="debug")
    configure_logs(settings, sys.stderr)
    click.get_current_context().exit(run_in_loop(_run(settings)))


async def _run(settings: SidecarSettings) -> int:
    process = Sidecar(settings)
    with signals(process.tell):
        try:
            return await process.run()
        except LoadError as error:  # no fault of who called this, and the next start may go well
            raise Failed(str(error)) from error
