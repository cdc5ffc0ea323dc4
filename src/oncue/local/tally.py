"""Counts, by queue, what becomes of messages, from the events of the pumps."""

from __future__ import annotations

import msgspec

from oncue.events import Event, MessageDead, MessageDone, MessageRetried


class Count(msgspec.Struct):
    """Messages done, attempts that failed, and what the last of these failed of."""

    done: int = 0
    errors: int = 0
    error: str = ""


class QueueTally:
    """A listener to events."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case MessageDone():
                self.of(event.queue).done += 1
            case MessageRetried() | MessageDead():
                count = self.of(event.queue)
                count.errors += 1
                count.error = event.error

    def of(self, queue: str) -> Count:
        """What there was of this queue so far."""
        return self._counts.setdefault(queue, Count())
