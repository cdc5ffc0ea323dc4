"""The verbs `oncue ps` and `oncue down`: what `oncue up` runs in this folder, and its end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import click

from oncue.cli.failure import Failed, say
from oncue.cli.group import Verb
from oncue.cli.output import Column, as_json_option, count_of, write_json_list, write_table
from oncue.local.state import HOME, ActorReport, Taken, ask, ended, find

_PATIENCE = 15.0
"""Seconds beyond the grace period after which what does not end is killed."""


@click.command(cls=Verb)
@as_json_option
def ps(*, as_json: bool) -> None:
    """List the actors that oncue up runs in this folder."""
    running = find(HOME)
    reports = list(ask(running)) if running is not None else []
    if as_json:
        write_json_list(reports)
        return
    columns: list[Column[ActorReport]] = [
        Column("ACTOR", lambda each: each.name),
        Column("STATE", lambda each: each.state),
        Column("REPLICAS", lambda each: "built in" if each.built_in else f"{each.replicas}/{each.wanted}", right=True),
        Column("READY", lambda each: count_of(each.ready), right=True),
        Column("LEASED", lambda each: count_of(each.leased), right=True),
        Column("DELAYED", lambda each: count_of(each.delayed), right=True),
        Column("DEAD", lambda each: count_of(each.dead), right=True),
        Column("DONE", lambda each: count_of(each.done), right=True),
        Column("ERRORS", lambda each: count_of(each.errors), right=True),
        Column("LAST ERROR", lambda each: each.error, cut=True),
    ]
    write_table(reports, columns, empty="Nothing runs in this folder.")


@click.command(cls=Verb)
def down() -> None:
    """End what oncue up runs in this folder, and wait until it has ended.

    What has begun is finished within the grace period, and the rest stays in the queues.
    """
    try:
        running = find(HOME)
    except Taken as error:  # on its way out already, else there would be more to say about it
        if not ended(HOME, _PATIENCE):
            raise Failed(str(error)) from None
        click.echo("Ended.", err=True)
        return
    if running is None:
        click.echo("Nothing runs in this folder.", err=True)
        return
    with suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    if not ended(HOME, running.grace + _PATIENCE):
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)
        if not ended(HOME, _PATIENCE):
            raise Failed(f"process {running.pid} does not end")
        say(f"process {running.pid} did not end by itself and was killed; what it had begun will be done again")
    click.echo("Ended.", err=True)
