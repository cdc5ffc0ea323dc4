"""Looks at the servers: how many there are, and how many copies there are of what matters."""

from __future__ import annotations

from collections.abc import Sequence

from oncue.transports.examination import Remark, State
from oncue.transports.kafka.desk import Desk


async def examine(desk: Desk) -> Sequence[Remark]:
    """What the cluster's settings mean for messages."""
    found = await desk.cluster.about()
    nodes = len(found.nodes)
    remarks = [Remark("servers", "ok" if nodes > 2 else "note", f"{nodes}")]
    copies = desk.address.replication or min(3, nodes)
    if copies < 2:
        state: State = "bad" if nodes > 1 else "note"
        remarks.append(
            Remark("copies", state, f"{copies} of each message in topics that are made: a lost disk loses it")
        )
    else:
        remarks.append(
            Remark("copies", "ok", f"{copies} of each message, all but one of them written when it counts as sent")
        )
    days = int(found.settings.get("offsets.retention.minutes", 10080)) / 1440
    text = f"kept for {days:g} days after the last consumer went: after that its unfinished work counts as new"
    remarks.append(Remark("committed offsets", "ok" if days >= 1 else "bad", text))
    return remarks
