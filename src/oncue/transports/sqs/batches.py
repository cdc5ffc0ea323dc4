"""The calls of SQS that take up to ten entries, each of which is answered by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oncue.core.errors import ConnectionLostError, OnCueError, ThrottledError
from oncue.transports.polling.lines import Job, Refusal
from oncue.transports.sqs.calls import Calls
from oncue.transports.sqs.faults import is_passing, said

FULL = 10
"""Entries that a batch may have."""

SEND, DELETE, CHANGE = "send_message_batch", "delete_message_batch", "change_message_visibility_batch"


class Batches:
    """One of these calls on one queue."""

    most = FULL

    def __init__(self, calls: Calls, operation: str, queue: str, url: str) -> None:
        self._calls = calls
        self._operation = operation
        self._queue = queue
        self._url = url
        self.largest = calls.address.size

    async def ask(self, jobs: Sequence[Job], until: float) -> Mapping[int, Refusal]:
        shown = self._calls.address.shown
        entries = [{"Id": str(number), **job.entry} for number, job in enumerate(jobs)]
        answer = await self._calls.ask(self._operation, self._queue, until=until, QueueUrl=self._url, Entries=entries)
        good = {int(each["Id"]) for each in answer.get("Successful") or ()}
        refused = {}
        for each in answer.get("Failed") or ():
            error = said(each, shown, self._queue)
            refused[int(each["Id"])] = Refusal(error, isinstance(error, ThrottledError | ConnectionLostError))
        for number in set(range(len(jobs))) - good - set(refused):
            error = ConnectionLostError(f"{shown}: an entry of a batch was not answered")
            refused[number] = Refusal(error, False)
        return refused

    def is_passing(self, error: OnCueError) -> bool:
        return is_passing(error)
