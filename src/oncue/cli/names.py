"""Finds the queue that a person means, who may name the actor, the queue, or the queue's dead letters."""

from __future__ import annotations

from collections.abc import Iterable

from oncue.cli.failure import Failed, say
from oncue.core.message import check_queue_name
from oncue.core.settings import did_you_mean
from oncue.dead import dead_queue_name, is_dead_queue
from oncue.transports.base import Transport


async def queue_names(transport: Transport) -> list[str]:
    """The names of all queues, dead queues among them."""
    return [spec.name for spec in await transport.queues()]


async def find_queue(transport: Transport, prefix: str, name: str) -> str:
    """The queue of the actor `name`, else the queue called `name`; raise `Failed` when there is neither."""
    check_queue_name(name)
    known = await queue_names(transport)
    return _choose(name, prefix, known, known)


async def find_dead_queue(transport: Transport, prefix: str, name: str) -> str | None:
    """The queue with the dead letters of what `name` names, or `name` itself if it is one; None when no letter ever came.

    Raise `Failed` when `name` names nothing.
    """
    check_queue_name(name)
    known = set(await queue_names(transport))
    living = {queue for queue in known if not is_dead_queue(queue)}
    buried = {queue for queue in known if is_dead_queue(queue)}
    origins = living | {queue.removesuffix(dead_queue_name("")) for queue in buried}
    for candidate in (f"{prefix}{name}", name):
        if candidate in buried:
            return candidate
    dead = dead_queue_name(_choose(name, prefix, origins, known))
    return dead if dead in known else None


def _choose(name: str, prefix: str, among: Iterable[str], known: Iterable[str]) -> str:
    among = list(among)
    for candidate in (f"{prefix}{name}", name):
        if candidate in among:
            return candidate
    close = did_you_mean(name, among, prefix=prefix)
    if not close and not list(known):
        close = ", there are no queues at all"
    raise Failed(f"there is no queue {prefix + name!r} or {name!r}{close}", hint="oncue queue list shows what there is")


def warn_of_looking(transport: Transport) -> None:
    """Say so, on standard error, if a look at messages is not without consequences on this broker."""
    if not transport.features.peek:
        say("this broker hides messages while they are looked at, and counts a look as a consumer that went away")
