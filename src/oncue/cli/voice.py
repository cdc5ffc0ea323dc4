"""What a worker says about itself: sentences for a person at a terminal, log records elsewhere."""

from __future__ import annotations

import logging
import os
from typing import Protocol

import click

from oncue import __version__
from oncue.cli.output import plural
from oncue.cli.status import StatusLine
from oncue.core.times import format_duration
from oncue.supervisor import Loaded
from oncue.worker import Counts

_log = logging.getLogger("oncue.worker")


class Voice(Protocol):
    def started(self, target: str, loaded: Loaded, processes: int) -> None: ...  # what was loaded, and where
    def told(self, in_flight: int, *, again: bool) -> None: ...  # a signal came
    def ended(self, finished: int, released: int, counts: Counts) -> None: ...  # all is over


def voice_for(line: StatusLine | None, grace: float) -> Voice:
    """The voice for a terminal that has a status line, or for none."""
    return Records(grace) if line is None else Sentences(grace)


class Sentences:
    """On standard error, for a person."""

    def __init__(self, grace: float) -> None:
        self._grace = format_duration(grace)

    def started(self, target: str, loaded: Loaded, processes: int) -> None:
        _say(f"oncue {__version__} runs {target} on {loaded.url}")
        names = max(len(name) for name, _, _ in loaded.actors)
        queues = max(len(queue) for _, queue, _ in loaded.actors)
        many = f" in each of {processes} processes" if processes > 1 else ""
        for name, queue, concurrency in loaded.actors:
            _say(f"  {name.ljust(names)}  queue {queue.ljust(queues)}  up to {concurrency} at once{many}")
        if loaded.address:
            more = " (the other processes: the ports after it)" if processes > 1 else ""
            _say(f"Metrics and health: http://{loaded.address}/metrics, /livez, /readyz{more}")
        _say(f"Ctrl-C finishes what has begun (up to {self._grace}) and gives back the rest; again, it stops at once.")

    def told(self, in_flight: int, *, again: bool) -> None:
        if again:
            _say("Stopping at once.")
        elif in_flight:
            _say(f"Stopping: finishing {plural(in_flight, 'message')}, for up to {self._grace}. Ctrl-C again: at once.")
        else:
            _say("Stopping.")

    def ended(self, finished: int, released: int, counts: Counts) -> None:
        parts = [f"Stopped after {plural(counts.done, 'message')}."]
        if finished:
            parts.append(f"Finished {finished} on the way out.")
        if released:
            parts.append(f"Gave back {released}, uncounted: the next worker gets what was not finished.")
        _say(" ".join(parts))


def _say(text: str) -> None:
    click.echo(text, err=True)


class Records:
    """In the log, for machines."""

    def __init__(self, grace: float) -> None:
        self._grace = grace

    def started(self, target: str, loaded: Loaded, processes: int) -> None:
        actors = ", ".join(f"{name} ({queue}, {concurrency})" for name, queue, concurrency in loaded.actors)
        _record("worker.started", version=__version__, app=target, url=loaded.url, actors=actors, metrics=loaded.address, processes=processes, pid=os.getpid())  # fmt: skip

    def told(self, in_flight: int, *, again: bool) -> None:
        _record("worker.stopping", in_flight=in_flight, grace=0.0 if again else self._grace)

    def ended(self, finished: int, released: int, counts: Counts) -> None:
        _record("worker.stopped", finished=finished, released=released, done=counts.done, retried=counts.retried, dead=counts.dead)  # fmt: skip


def _record(name: str, **fields: object) -> None:
    _log.info(name, extra={"fields": fields})
