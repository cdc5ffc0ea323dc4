"""The calls of Pub/Sub that take up to a thousand entries, and are refused as a whole or for some handles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oncue.core.errors import LeaseLostError, OnCueError, ThrottledError
from oncue.transports.polling.lines import Job, Refusal
from oncue.transports.pubsub.calls import ACKNOWLEDGE, CHANGE, PUBLISH, Calls, Operation
from oncue.transports.pubsub.faults import refused
from oncue.transports.pubsub.wire import AcknowledgeRequest, ModifyAckDeadlineRequest, PublishRequest

_LARGEST = {PUBLISH.name: 9_900_000, ACKNOWLEDGE.name: 400_000, CHANGE.name: 400_000}
"""Bytes that a call may have."""


class Batches:
    """One of these calls on one topic or subscription. What changes deadlines has one in common, for all in a call."""

    most = 1000

    def __init__(self, calls: Calls, operation: Operation, queue: str, place: str) -> None:
        self._calls = calls
        self._operation = operation
        self._queue = queue
        self._place = place
        self.largest = _LARGEST[operation.name]

    async def ask(self, jobs: Sequence[Job], until: float) -> Mapping[int, Refusal]:
        try:
            await self._calls.ask(self._operation, self._request(jobs), self._queue, until=until)
        except OnCueError as error:
            handles = refused(error)
            if handles is None:
                raise
            found = ((number, handles.get(job.entry)) for number, job in enumerate(jobs))
            return {number: self._refusal(passing=passing) for number, passing in found if passing is not None}
        return {}

    def is_passing(self, error: OnCueError) -> bool:
        return isinstance(error, ThrottledError)

    def _request(self, jobs: Sequence[Job]) -> Any:
        entries = [job.entry for job in jobs]
        if self._operation is PUBLISH:
            return PublishRequest(topic=self._place, messages=entries)
        if self._operation is ACKNOWLEDGE:
            return AcknowledgeRequest(subscription=self._place, ack_ids=entries)
        seconds = jobs[0].common
        return ModifyAckDeadlineRequest(subscription=self._place, ack_ids=entries, ack_deadline_seconds=seconds)

    def _refusal(self, *, passing: bool) -> Refusal:
        if passing:
            return Refusal(
                ThrottledError(f"{self._calls.address.shown}: could not settle a message at the moment"), True
            )
        return Refusal(LeaseLostError(self._queue, "?"), False)
