"""The command line, `oncue`. `main` is the whole of it as a click group; each verb is a module that is loaded when it is asked for."""

from __future__ import annotations

import click

from oncue import __version__
from oncue.cli.group import Program
from oncue.cli.session import global_options

__all__ = ["main"]

VERBS = {
    "run": ("oncue.cli.run:run", "Run an app as a worker."),
    "up": ("oncue.cli.up:up", "Run actors from manifests as processes on this machine."),
    "ps": ("oncue.cli.ps:ps", "List the actors that up runs in this folder."),
    "down": ("oncue.cli.ps:down", "End what up runs in this folder."),
    "sidecar": ("oncue.cli.sidecar:sidecar", "Take one actor's messages to its runtime."),
    "send": ("oncue.cli.send:send", "Send an actor one payload, or many from standard input."),
    "queue": ("oncue.cli.queue:queue", "List, show, create, delete, purge and peek into queues."),
    "dead": ("oncue.cli.dead:dead", "List, show, redrive and discard dead letters."),
    "result": ("oncue.cli.result:result", "List and show kept results."),
    "doctor": ("oncue.cli.doctor:doctor", "Check this machine, the settings and the transport."),
    "init": ("oncue.cli.init:init", "Write a small working project."),
    "completion": ("oncue.cli.completion:completion", "Print the completion script for a shell."),
}
"""Every verb with the place of its command and its line in the help, which must not cost an import."""


@click.group(
    "oncue",
    cls=Program,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="The options --transport, --config and -v may stand before or after the verb. "
    "Exit codes: 0 done, 1 failed, 2 wrongly called or set up, 130 interrupted.",
)
@global_options(hidden=False)
@click.version_option(__version__, "--version", prog_name="oncue", message="%(prog)s %(version)s")
def main() -> None:
    """Queue-driven actors: send work, run workers, and see what became of each message."""
