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
    MessageTooLargeError,
    OnCueError,
    PartialSendError,
    QueueNotFoundError,
    TransportError,
)
from oncue.core.message import Send, check_delay
from oncue.transports.pubsub.address import LARGEST, Address
from oncue.transports.pubsub.calls import ACKNOWLEDGE, CHANGE, PUBLISH, Calls, Operation
from oncue.transports.pubsub.codec import Text, encode, written
from oncue.transports.pubsub.lines import Job, Line
from oncue.transports.pubsub.names import order_of
from oncue.transports.pubsub.queues import LONGEST_DEADLINE, Place, Queues

_log = logging.getLogger("oncue.transports.pubsub")

_ENTRY = 64
"""Bytes that an entry takes in a call beside what it is."""


class Parcel(NamedTuple):
    """One message on its way: the name of its queue, the topic, what is sent, and its bytes."""

    queue: str
    topic: str
    ordered: bool
    entry: Any
    size: int


class Desk:
    """One for each transport, bound to the event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.calls = Calls(address)
        self.queues = Queues(self.calls)
        self._lines: dict[tuple[str, str], Line] = {}
        self._work: set[Task[Any]] = set()

    # What goes out

    async def parcels(self, sends: Sequence[Send]) -> Sequence[Parcel]:
        """What is to be sent; raise `InvalidValueError` or `MessageTooLargeError` for what cannot be, `QueueNotFoundError`."""
        texts = []
        for send in sends:
            check_delay(send.delay)
            texts.append(encode(send, self.address.max_body))
        found = []
        for send, text in zip(sends, texts, strict=True):
            found.append(self.parcel(await self.queues.place(send.queue), text, send.delay))
        return found

    def parcel(self, place: Place, text: Text, delay: float = 0.0) -> Parcel:
        """One message, for the queue itself or, if it is delayed, for where it waits until it is due."""
        topic = place.topic
        if delay:
            check_fifo_delay(place, delay)
            text = text.changed(delay=math.ceil(delay * 1000), since=0)
            if not place.fifo:
                if place.later is None:
                    raise InvalidValueError(
                        f"queue {place.name!r}: was not declared by OnCue, so nothing can be delayed in it"
                    )
                topic = self.queues.topic(place.later)
        try:
            entry = written(text, order_of(text.head.key) if place.fifo else "")
        except MessageTooLargeError as error:
            raise MessageTooLargeError(place.name, error.size, error.limit) from None
        size = entry.ByteSize() + _ENTRY
        if size > LARGEST:
            raise MessageTooLargeError(place.name, size, LARGEST)
        return Parcel(place.name, topic, place.fifo, entry, size)

    async def send(self, parcels: Sequence[Parcel], until: float = math.inf) -> None:
        """Return when all are stored; raises what `Transport.send` raises. When cancelled, all may be stored as well."""
        futures: list[Future[None]] = []
        jobs: dict[str, list[Job]] = {}
        for parcel in parcels:
            job = Job(parcel.entry, self.loop.create_future(), parcel.size, until)
            futures.append(job.future)
            jobs.setdefault(parcel.topic, []).append(job)
        first = {parcel.topic: parcel for parcel in reversed(parcels)}
        for topic, batch in jobs.items():
            self._line(PUBLISH, first[topic].queue, topic, ordered=first[topic].ordered).add(batch)
        await asyncio.wait(futures)
        failures = {}
        for position, future in enumerate(futures):
            error = future.exception()
            if isinstance(error, TransportError):
                failures[position] = error
            elif error is not None:
                raise error
        if failures:
            cause = next(iter(failures.values()))
            raise cause if len(failures) == len(parcels) else PartialSendError(failures, len(parcels))

    async def delete(self, queue: str, subscription: str, handle: str, until: float = math.inf) -> None:
        job = Job(handle, self.loop.create_future(), len(handle) + 4, until)
        self._line(ACKNOWLEDGE, queue, subscription).add([job])
        await job.future

    async def change(self, queue: str, subscription: str, handle: str, seconds: int, until: float = math.inf) -> None:
        """Have it come again in `seconds`, counted, if it is not deleted before."""
        job = Job(handle, self.loop.create_future(), len(handle) + 4, until, seconds)
        self._line(CHANGE, queue, subscription).add([job])
        await job.future

    def _line(self, operation: Operation, queue: str, place: str, *, ordered: bool = False) -> Line:
        line = self._lines.get((operation.name, place))
        if line is None:
            line = Line(self.calls, operation, queue, place, ordered=ordered)
            line.on_error = lambda error: self._on_error(queue, error)
            self._lines[operation.name, place] = line
        return line

    def _on_error(self, queue: str, error: OnCueError) -> None:
        if isinstance(error, QueueNotFoundError):
            self.queues.forget(queue)

    # What runs

    def begin(self, work: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Have it run to its end, whoever is cancelled meanwhile; `close` waits for it."""
        task = self.loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked was told, or is gone

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        while self._work or not all(line.idle for line in self._lines.values()):
            if self._work:
                await asyncio.wait(self._work)
            else:
                await asyncio.sleep(0.005)
        await self.calls.close()


def check_fifo_delay(place: Place, delay: float) -> None:
    """Raise `InvalidValueError` for a delay that a FIFO queue cannot keep: its messages wait where they are."""
    if place.fifo and delay > LONGEST_DEADLINE:
        raise InvalidValueError(
            f"queue {place.name!r}: a FIFO queue delays a message by {LONGEST_DEADLINE} s at most, not {delay:g} s"
        )
