"""Looks at the service: as whom it is asked, and at queues that lose messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from oncue.core.errors import TransportError
from oncue.transports.examination import Remark
from oncue.transports.sqs.desk import Desk

_FEW = 10
_MOST = 50
"""Queues that are looked at."""


async def examine(desk: Desk) -> Sequence[Remark]:
    """What there is to say of it; raise `AccessDeniedError` where queues are not listed to these credentials."""
    found = [Remark("service", "ok", desk.calls.endpoint)]
    specs = await desk.queues.declared()
    for spec in specs[:_MOST]:
        try:
            attributes = await desk.queues.attributes(spec.name)
        except TransportError:
            continue
        policy = json.loads(attributes.get("RedrivePolicy") or "{}")
        most = int(policy.get("maxReceiveCount", 0) or 0)
        if 0 < most < _FEW:
            text = (
                f"SQS moves a message to its dead letters after {most} receipts, and each worker that dies with it and each look "
                "is one: set maxReceiveCount to 100 or more, and leave the attempts to OnCue"
            )
            found.append(Remark(f"queue {spec.name}", "note", text))
        kept = int(attributes.get("MessageRetentionPeriod", 0) or 0)
        if spec.retention is None and 0 < kept < 86_400:
            text = f"SQS drops messages after {kept} s, worked on or not: set MessageRetentionPeriod to 1209600"
            found.append(Remark(f"queue {spec.name}", "bad", text))
    return found
