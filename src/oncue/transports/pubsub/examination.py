"""Looks at the service: where it is, and at subscriptions that lose messages or cannot tell who lost them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oncue.core.errors import AccessDeniedError
from oncue.transports.examination import Remark
from oncue.transports.pubsub import labels
from oncue.transports.pubsub.desk import Desk
from oncue.transports.pubsub.names import here

_MOST = 50
"""Queues that are looked at."""
_DAY = 86_400


async def examine(desk: Desk) -> Sequence[Remark]:
    """What can be seen with these credentials."""
    emulator = desk.address.emulator
    if emulator is None:
        found = [Remark("service", "ok", desk.address.endpoint or "pubsub.googleapis.com")]
    else:
        found = [
            Remark(
                "service", "note", f"the emulator at {emulator}: it keeps all in memory, and forgets it when it stops"
            )
        ]
    try:
        there = [each for each in await desk.queues.all() if labels.is_declared(each.labels)]
    except AccessDeniedError:
        return [*found, Remark("queues", "note", "are not listed to these credentials, so they were not looked at")]
    for each in there[:_MOST]:
        found += _remarks(here(each.name.rpartition("/")[2]), each)
    found.append(Remark("queues", "ok", f"{len(there)}"))
    return found


def _remarks(name: str, there: Any) -> Sequence[Remark]:
    found = []
    if there.topic == "_deleted-topic_":
        text = (
            "its topic was deleted, so nothing can be sent to it: take out what is left, delete it and declare it again"
        )
        found.append(Remark(f"queue {name}", "bad", text))
    if not there.enable_exactly_once_delivery:
        text = (
            "exactly-once delivery is off, so Pub/Sub takes an acknowledgement from a consumer that lost its lease: make it with "
            "enable_exactly_once_delivery"
        )
        found.append(Remark(f"queue {name}", "note", text))
    if not there.dead_letter_policy.dead_letter_topic:
        text = "has no dead-letter policy, so attempts whose workers died are not counted: set one with 100 attempts"
        found.append(Remark(f"queue {name}", "note", text))
    elif 0 < there.dead_letter_policy.max_delivery_attempts < 20:
        text = (
            f"Pub/Sub sets a message aside after {there.dead_letter_policy.max_delivery_attempts} deliveries: set "
            "max_delivery_attempts to 100, and leave the attempts to OnCue"
        )
        found.append(Remark(f"queue {name}", "note", text))
    if there.expiration_policy.ttl.seconds:
        text = (
            f"Pub/Sub deletes it after {there.expiration_policy.ttl.seconds} s without a consumer: let it never expire"
        )
        found.append(Remark(f"queue {name}", "bad", text))
    if 0 < there.message_retention_duration.seconds < _DAY:
        text = f"Pub/Sub drops messages after {there.message_retention_duration.seconds} s, worked on or not"
        found.append(Remark(f"queue {name}", "bad", text))
    return found
