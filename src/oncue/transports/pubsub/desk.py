"""The parts of one transport, and how they are put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import Send, check_delay
from oncue.transports.polling.lease import check_fifo_delay
from oncue.transports.polling.lines import Line, Parcel
from oncue.transports.polling.tasks import Tasks
from oncue.transports.pubsub.address import LARGEST, Address
from oncue.transports.pubsub.batches import Batches
from oncue.transports.pubsub.calls import ACKNOWLEDGE, CHANGE, PUBLISH, Calls, Operation
from oncue.transports.pubsub.codec import Text, encode, written
from oncue.transports.pubsub.names import order_of
from oncue.transports.pubsub.queues import LONGEST_DEADLINE, Place, Queues

_ENTRY, _HANDLE = 64, 4
"""Bytes that a message and a handle take in a call beside what they are."""


class Desk:
    """One for each transport, bound to the event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.tasks = Tasks()
        self.calls = Calls(address)
        self.queues = Queues(self.calls)
        self._lines: dict[tuple[str, str], Line] = {}

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
            check_fifo_delay(place.name, delay, LONGEST_DEADLINE, fifo=place.fifo)
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
        return Parcel(self._line(PUBLISH, place.name, topic, ordered=place.fifo), entry, size)

    # What is held

    async def delete(self, queue: str, subscription: str, handle: str, until: float = math.inf) -> None:
        await self._line(ACKNOWLEDGE, queue, subscription).do(handle, len(handle) + _HANDLE, until)

    async def change(self, queue: str, subscription: str, handle: str, seconds: int, until: float = math.inf) -> None:
        """Have it come again in `seconds`, counted, if it is not deleted before."""
        await self._line(CHANGE, queue, subscription).do(handle, len(handle) + _HANDLE, until, common=seconds)

    def _line(self, operation: Operation, queue: str, place: str, *, ordered: bool = False) -> Line:
        line = self._lines.get((operation.name, place))
        if line is None:
            line = Line(Batches(self.calls, operation, queue, place), queue, self.queues.forget, ordered=ordered)
            self._lines[operation.name, place] = line
        return line

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        await self.tasks.finish(lambda: all(line.idle for line in self._lines.values()))
        await self.calls.close()
