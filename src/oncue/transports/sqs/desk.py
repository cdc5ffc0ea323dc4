"""The parts of one transport, and how they are put together."""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import Future, Task
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from oncue.core.errors import (
    InvalidValueError,
    OnCueError,
    PartialSendError,
    QueueNotFoundError,
    TransportError,
)
from oncue.core.message import Send, check_delay
from oncue.transports.sqs.address import Address
from oncue.transports.sqs.calls import Calls
from oncue.transports.sqs.clock import Clock
from oncue.transports.sqs.codec import Text, check_size, encode
from oncue.transports.sqs.lines import CHANGE, DELETE, SEND, Job, Line
from oncue.transports.sqs.names import group_of, token_of
from oncue.transports.sqs.queues import Place, Queues

_log = logging.getLogger("oncue.transports.sqs")

LONGEST_DELAY = 900.0
"""Seconds for which the service delays a message; longer ones are made of several such."""
_LAST_POLLS = 2.0
"""Seconds that requests for messages get to end by themselves when the transport is closed."""


class Parcel(NamedTuple):
    """One message on its way: the place of its queue, what is sent, and its bytes."""

    place: Place
    entry: dict[str, Any]
    size: int


class Desk:
    """One for each transport, bound to the event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.calls = Calls(address)
        self.queues = Queues(self.calls)
        self.clock = Clock()
        self._lines: dict[tuple[str, str], Line] = {}
        self._work: set[Task[Any]] = set()
        self._polls: set[Task[Any]] = set()

    # What goes out

    async def parcels(self, sends: Sequence[Send], cause: str = "") -> Sequence[Parcel]:
        """What is to be sent for `sends`; `cause` is the number of the message that is acknowledged with it.

        Raise `InvalidValueError` or `MessageTooLargeError` for what cannot be stored, and `QueueNotFoundError`.
        """
        address = self.address
        texts = []
        for send in sends:
            check_delay(send.delay)
            texts.append(encode(send, address.size, address.max_body))
        found = []
        for send, text in zip(sends, texts, strict=True):
            place = await self.queues.place(send.queue)
            found.append(self.parcel(place, text, send.delay, cause))
        return found

    def parcel(self, place: Place, text: Text, delay: float = 0.0, cause: str = "") -> Parcel:
        """One message, delayed as far as the service can, and told how much of it remains."""
        head = text.head
        if delay:
            now = 0.0 if place.fifo else min(delay, LONGEST_DELAY)
            rest = max(0.0, delay - now)
            if place.fifo and delay > self.address.longest_hold:
                raise InvalidValueError(
                    f"queue {place.name!r}: a FIFO queue delays a message by {self.address.longest_hold:g} s at most"
                )
            text = text.with_delay(round(now * 1000), math.ceil(rest * 1000))
        entry = text.entry()
        if place.fifo:
            entry["MessageGroupId"] = group_of(head.key)
            entry["MessageDeduplicationId"] = token_of(head.id, cause)
        elif delay:
            entry["DelaySeconds"] = math.ceil(min(delay, LONGEST_DELAY))
        return Parcel(place, entry, check_size(place.name, entry, self.address.size))

    async def send(self, parcels: Sequence[Parcel], until: float = math.inf) -> None:
        """Return when all are stored; raises what `Transport.send` raises. When cancelled, all may be stored as well."""
        futures: list[Future[None]] = []
        jobs: dict[str, list[Job]] = {}
        for parcel in parcels:
            job = Job(parcel.entry, self.loop.create_future(), parcel.size, until)
            futures.append(job.future)
            jobs.setdefault(parcel.place.url, []).append(job)
        places = {parcel.place.url: parcel.place for parcel in parcels}
        for url, batch in jobs.items():
            self._line(SEND, places[url]).add(batch)
        await asyncio.wait(futures)
        failures = {}
        for position, future in enumerate(futures):
            error = future.exception()
            if isinstance(error, TransportError):
                failures[position] = error
            elif error is not None:
                raise error
        if not failures:
            return
        first = next(iter(failures.values()))
        raise first if len(failures) == len(parcels) else PartialSendError(failures, len(parcels))

    async def delete(self, place: Place, handle: str, until: float = math.inf) -> None:
        await self._job(DELETE, place, {"ReceiptHandle": handle}, until)

    async def change(self, place: Place, handle: str, seconds: float, until: float = math.inf) -> None:
        """Have it come again in `seconds`, counted, if it is not deleted before."""
        entry = {"ReceiptHandle": handle, "VisibilityTimeout": math.ceil(seconds)}
        await self._job(CHANGE, place, entry, until)

    async def _job(self, operation: str, place: Place, entry: dict[str, Any], until: float) -> None:
        job = Job(entry, self.loop.create_future(), until=until)
        self._line(operation, place).add([job])
        await job.future

    def _line(self, operation: str, place: Place) -> Line:
        line = self._lines.get((operation, place.url))
        if line is None:
            line = Line(self.calls, operation, place.name, place.url, ordered=place.fifo and operation == SEND)
            line.on_error = lambda error: self._on_error(place, error)
            self._lines[operation, place.url] = line
        return line

    def _on_error(self, place: Place, error: OnCueError) -> None:
        if isinstance(error, QueueNotFoundError):
            self.queues.forget(place.name)

    # What runs

    def begin(self, work: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Have it run to its end, whoever is cancelled meanwhile; `close` waits for it."""
        task = self.loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        return task

    def poll(self, work: Coroutine[Any, Any, None]) -> Task[None]:
        """The same for what may wait long: `close` does not."""
        task = self.loop.create_task(work)
        self._polls.add(task)
        task.add_done_callback(self._polls.discard)
        return task

    def _ended(self, task: Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked was told, or is gone

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        if self._polls:
            await asyncio.wait(self._polls, timeout=_LAST_POLLS)
        for task in list(self._polls):
            task.cancel()
        if self._polls:
            await asyncio.wait(self._polls)
        while self._work or not all(line.idle for line in self._lines.values()):
            if self._work:
                await asyncio.wait(self._work)
            else:
                await asyncio.sleep(0.005)
        self.clock.close()
        await self.calls.close()
