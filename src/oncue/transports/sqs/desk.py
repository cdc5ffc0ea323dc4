"""The parts of one transport, and how they are put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from oncue.core.message import Send, check_delay
from oncue.transports.polling.lease import check_fifo_delay
from oncue.transports.polling.lines import Line, Parcel
from oncue.transports.polling.tasks import Tasks
from oncue.transports.sqs.address import Address
from oncue.transports.sqs.batches import CHANGE, DELETE, SEND, Batches
from oncue.transports.sqs.calls import Calls
from oncue.transports.sqs.clock import Clock
from oncue.transports.sqs.codec import Text, check_size, encode
from oncue.transports.sqs.names import group_of, token_of
from oncue.transports.sqs.queues import Place, Queues

LONGEST_DELAY = 900.0
"""Seconds for which the service delays a message; longer ones are made of several such."""


class Desk:
    """One for each transport, bound to the event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.tasks = Tasks()
        self.calls = Calls(address)
        self.queues = Queues(self.calls)
        self.clock = Clock()
        self._lines: dict[tuple[str, str], Line] = {}

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
            check_fifo_delay(place.name, delay, self.address.longest_hold, fifo=place.fifo)
            text = text.with_delay(round(now * 1000), math.ceil(rest * 1000))
        entry = text.entry()
        if place.fifo:
            entry["MessageGroupId"] = group_of(head.key)
            entry["MessageDeduplicationId"] = token_of(head.id, cause)
        elif delay:
            entry["DelaySeconds"] = math.ceil(min(delay, LONGEST_DELAY))
        return Parcel(self._line(SEND, place), entry, check_size(place.name, entry, self.address.size))

    # What is held

    async def receive(self, place: Place, most: int, wait: int, hidden: int) -> Mapping[str, Any]:
        """What the service answers, when it waited so many seconds for a message; it hides them for as long as is said."""
        answer: Mapping[str, Any] = await self.calls.ask(
            "receive_message",
            place.name,
            extra=wait,
            QueueUrl=place.url,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait,
            VisibilityTimeout=hidden,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        return answer

    async def delete(self, place: Place, handle: str, until: float = math.inf) -> None:
        await self._line(DELETE, place).do({"ReceiptHandle": handle}, 0, until)

    async def change(self, place: Place, handle: str, seconds: float, until: float = math.inf) -> None:
        """Have it come again in `seconds`, counted, if it is not deleted before."""
        entry = {"ReceiptHandle": handle, "VisibilityTimeout": math.ceil(seconds)}
        await self._line(CHANGE, place).do(entry, 0, until)

    def _line(self, operation: str, place: Place) -> Line:
        line = self._lines.get((operation, place.url))
        if line is None:
            batches = Batches(self.calls, operation, place.name, place.url)
            line = Line(batches, place.name, self.queues.forget, ordered=place.fifo and operation == SEND)
            self._lines[operation, place.url] = line
        return line

    async def close(self) -> None:
        """Finish what was asked for, and hang up."""
        await self.tasks.finish(lambda: all(line.idle for line in self._lines.values()))
        self.clock.close()
        await self.calls.close()
