"""What SQS has of its own where messages are received: how they are asked for, settled, and held."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError
from oncue.core.message import Send
from oncue.transports.base import QueueSpec
from oncue.transports.polling.lines import Parcel
from oncue.transports.polling.source import Arrival, Terms
from oncue.transports.sqs.batches import FULL
from oncue.transports.sqs.calls import moment
from oncue.transports.sqs.codec import Received, decode, repeat
from oncue.transports.sqs.queues import Place, visibility

if TYPE_CHECKING:
    from oncue.transports.sqs.desk import Desk

_POLLS = 4
_PATIENT = 5
"""After so many requests that brought nothing they wait longer, as long as they may in the end."""
_LAST_POLL = 2.0


class SQSSource:
    """One queue. The service may take a delete with an old handle without a word, so what is done late counts as not done."""

    log = logging.getLogger("oncue.transports.sqs")

    def __init__(self, desk: Desk, place: Place, spec: QueueSpec) -> None:
        address = desk.address
        self._desk = desk
        self._place = place
        self._retention = spec.retention
        self._visibility = visibility(spec.lease, address.visibility)
        self.name = spec.name
        self.terms = Terms(
            lease=min(max(spec.lease, address.visibility), address.longest_hold),
            kept=self._visibility,
            longest_hold=address.longest_hold,
            longest_wait=address.longest_hold,
            most=FULL,
            polls=_POLLS,
            last_poll=_LAST_POLL,
        )

    @property
    def fifo(self) -> bool:
        return self._place.fifo

    async def poll(self, most: int, empty: int | None) -> Sequence[Arrival[Received]]:
        wait = 0 if empty is None else min(self._desk.address.wait, 2 ** max(0, min(empty, 99) - _PATIENT))
        clock = self._desk.clock
        clock.begin()
        try:
            answer = await self._ask(most, wait)
        finally:
            at = clock.end()
        found = (decode(each, fifo=self.fifo) for each in answer.get("Messages") or ())
        now = moment(answer)
        return [Arrival(each, at, each.rest(now), self._is_old(each, now)) for each in found]

    async def parcels(self, sends: Sequence[Send], cause: Received, /) -> Sequence[Parcel]:
        return await self._desk.parcels(sends, cause.number)

    def anew(self, received: Received, attempts: int, delay: float) -> Parcel | None:
        if self.fifo or not received.repeatable:
            return None
        since = received.began if self._retention is not None and not delay else 0
        text = repeat(received, attempts=attempts, lost=received.lost, since=since)
        return self._desk.parcel(self._place, text, delay)

    async def delete(self, received: Received, until: float) -> None:
        await self._desk.delete(self._place, received.handle, until)
        self._check_in_time(until)

    async def put_off(self, received: Received, seconds: float, until: float) -> None:
        await self._desk.change(self._place, received.handle, min(seconds, self.terms.longest_wait), until)
        self._check_in_time(until)

    async def keep(self, received: Received, seconds: float, until: float) -> float:
        await self._desk.change(self._place, received.handle, seconds, until)
        return seconds

    async def _ask(self, most: int, wait: int) -> Mapping[str, Any]:
        desk = self._desk
        try:
            self._place = await desk.queues.place(self.name)
            return await desk.receive(self._place, most, wait, self._visibility)
        except QueueNotFoundError:
            desk.queues.forget(self.name)
            raise
        except ConnectionLostError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            await desk.queues.look_up(self.name)  # some servers never answer who waits for a queue that is deleted
            return {}

    def _is_old(self, received: Received, now: int | None) -> bool:
        """Whether it was kept too long, by the service's clock alone."""
        if self._retention is None or now is None or not received.sent:
            return False
        return now - received.began >= self._retention * 1000

    def _check_in_time(self, until: float) -> None:
        if until <= self._desk.tasks.loop.time():
            raise LeaseLostError(self.name, "?")
