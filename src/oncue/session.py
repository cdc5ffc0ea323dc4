"""What belongs to one subscription of a pump: who takes its messages, and how it is with the broker."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future, Task
from collections.abc import Coroutine
from typing import Any

from oncue.core.errors import TransportError
from oncue.transports.base import Lease, Subscription

_log = logging.getLogger("oncue.pump")


class Slot:
    """One of the coroutines that each take a message through all its stages."""

    __slots__ = ("handling", "lease", "task")

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.handling = False
        self.task: Task[None]


class Session:
    """What belongs to one subscription; a handler that outlives it finds here that it is over."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.slots: list[Slot] = []
        self.idle = 0  # slots without a message
        self.first_end: Future[Task[None]] = asyncio.get_running_loop().create_future()
        self.stopping = False
        self.aborting = False
        self.received = 0
        self.ahead = asyncio.Event()
        self.calm = asyncio.Event()
        self.calm.set()
        self.trouble: TransportError | None = None
        self.news = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return sum(slot.lease is not None for slot in self.slots)

    @property
    def tasks(self) -> list[Task[None]]:
        return [slot.task for slot in self.slots]

    def begin(self, work: Coroutine[Any, Any, None]) -> Task[None]:
        """A task whose end, whatever it is, is the end of the session."""
        task = asyncio.create_task(work)
        task.add_done_callback(lambda ended: None if self.first_end.done() else self.first_end.set_result(ended))
        return task

    def fetch(self, prefetch: int, *, ahead: bool) -> None:
        """Let the transport fetch `prefetch` messages."""
        if ahead:
            self.ahead.set()
        else:
            self.ahead.clear()
        try:
            self.subscription.resize(prefetch)
        except TransportError as error:
            _log.debug("prefetch could not be changed, which those who receive will notice as well: %s", error)
