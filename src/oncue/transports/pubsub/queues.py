"""Queues: made, found, compared and deleted. What they were declared as is kept in labels of their subscriptions.

A subscription without such labels was made by somebody else and is used as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from oncue.core.errors import (
    AccessDeniedError,
    IncompatibleStoreError,
    InvalidValueError,
    QueueMismatchError,
    QueueNotFoundError,
    TransportError,
)
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.polling.places import Places
from oncue.transports.pubsub import calls, labels, wire
from oncue.transports.pubsub.calls import Calls
from oncue.transports.pubsub.faults import is_there
from oncue.transports.pubsub.names import LOST, here, later, there

_log = logging.getLogger("oncue.transports.pubsub")

LONGEST_RETENTION = 31 * 86_400
"""Seconds; the service keeps no message longer."""
_OLD_RETENTION = 7 * 86_400
"""Seconds that the emulator keeps one at most."""
_SPARE = 86_400
"""Seconds for which a message may be held, which is no part of its age here."""
SHORTEST_DEADLINE, LONGEST_DEADLINE = 10, 600
"""Seconds, of a subscription's deadline, and of any."""
BLIND = 1.0
"""Seconds by which the service keeps a lease for longer than it lasts here."""
_DEAD = "-dlq"
_GONE = "_deleted-topic_"


class Place(NamedTuple):
    """Where a queue is: its topic and subscription, and those of what is delayed, if it has them."""

    name: str
    topic: str
    subscription: str
    fifo: bool
    later: str | None
    deadline: int


class Queues:
    """Asks over `calls`, and remembers where queues are: `place`, or `look_up` to ask anew, raise `QueueNotFoundError`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._root = f"projects/{calls.address.project}"
        self._places = Places(self._find)
        self.place = self._places.get
        self.look_up = self._places.look_up
        self.forget = self._places.forget
        self._asked: dict[str, QueueSpec] = {}
        self._kept = LONGEST_RETENTION

    def topic(self, name: str) -> str:
        return f"{self._root}/topics/{name}"

    def subscription(self, name: str) -> str:
        return f"{self._root}/subscriptions/{name}"

    async def get(self, name: str) -> tuple[Place, QueueSpec]:
        """As it was declared, by whomever; one that others made has the lease that was asked for here, or its own."""
        there = await self._subscription(name)
        place = None if there is None else self._place(name, there)
        if there is None or place is None:
            self.forget(name)
            raise QueueNotFoundError(name)
        self._places.know(name, place)
        if labels.is_declared(there.labels):
            return place, labels.spec(name, there.labels, fifo=place.fifo)
        return place, self._asked.get(name) or QueueSpec(name=name, lease=float(place.deadline), fifo=place.fifo)

    async def declare(self, spec: QueueSpec) -> None:
        """Make it, or find that it is there with the same settings; raise `QueueMismatchError` if it has others."""
        self.forget(spec.name)
        have = await self._subscription(spec.name) or await self._make(spec)
        if have.topic == _GONE:
            raise QueueMismatchError(spec.name, {"topic": (_GONE, self.topic(there(spec.name)))})
        if labels.is_declared(have.labels):
            check_equal(labels.spec(spec.name, have.labels, fifo=have.enable_message_ordering), spec)
        elif have.enable_message_ordering != spec.fifo:
            raise QueueMismatchError(spec.name, {"fifo": (have.enable_message_ordering, spec.fifo)})
        self.forget(spec.name)
        self._asked[spec.name] = spec
        await self._join_dead(spec.name)

    async def delete(self, name: str) -> None:
        """Its topic first, so that whoever sends is told."""
        self.forget(name)
        self._asked.pop(name, None)
        own = there(name)
        for word in (own, later(own)):
            with suppress(QueueNotFoundError):
                await self._calls.ask(calls.DELETE_TOPIC, wire.DeleteTopicRequest(topic=self.topic(word)), name)
            with suppress(QueueNotFoundError):
                request = wire.DeleteSubscriptionRequest(subscription=self.subscription(word))
                await self._calls.ask(calls.DELETE, request, name)

    async def declared(self) -> Sequence[QueueSpec]:
        """Those that were declared, by name."""
        found = []
        for each in await self.all():
            if labels.is_declared(each.labels):
                name = here(each.name.rpartition("/")[2])
                with suppress(IncompatibleStoreError):
                    found.append(labels.spec(name, each.labels, fifo=each.enable_message_ordering))
        return sorted(found, key=lambda spec: spec.name)

    async def all(self) -> Sequence[Any]:
        """All subscriptions of the project, as the service describes them."""
        found: list[Any] = []
        token = ""
        while True:
            request = wire.ListSubscriptionsRequest(project=self._root, page_size=1000, page_token=token)
            answer = await self._calls.ask(calls.LIST, request)
            found += answer.subscriptions
            token = answer.next_page_token
            if not token:
                return found

    # Inside

    async def _find(self, name: str) -> Place | None:
        found = await self._subscription(name)
        return None if found is None else self._place(name, found)

    async def _subscription(self, name: str) -> Any:
        request = wire.GetSubscriptionRequest(subscription=self.subscription(there(name)))
        try:
            return await self._calls.ask(calls.GET, request, name)
        except QueueNotFoundError:
            return None

    def _place(self, name: str, found: Any) -> Place | None:
        if found.topic == _GONE:
            return None
        apart = labels.is_declared(found.labels) and not found.enable_message_ordering
        return Place(
            name,
            found.topic,
            found.name,
            found.enable_message_ordering,
            later(there(name)) if apart else None,
            found.ack_deadline_seconds,
        )

    async def _make(self, spec: QueueSpec) -> Any:
        if spec.retention is not None and spec.retention > LONGEST_RETENTION:
            raise InvalidValueError(
                f"queue {spec.name!r}: Pub/Sub keeps messages for {LONGEST_RETENTION} s at most, not {spec.retention:g} s"
            )
        own, written = there(spec.name), labels.labels(spec)
        dead = await self._dead(spec.name)
        if not spec.fifo:
            await self._topic(later(own))
            await self._create(spec.name, self._delayed(own))
        await self._topic(own)
        found = self._settings()
        found.name = self.subscription(own)
        found.topic = self.topic(own)
        found.ack_deadline_seconds = deadline(spec.lease)
        found.enable_message_ordering = spec.fifo
        found.message_retention_duration.seconds = _kept(spec.retention)
        found.dead_letter_policy.dead_letter_topic = dead
        found.dead_letter_policy.max_delivery_attempts = self._calls.address.attempts
        found.labels.update(written)
        return await self._create(spec.name, found)

    @staticmethod
    def _settings() -> Any:
        """What all subscriptions have: they never expire, and settling is answered for each message."""
        found = wire.Subscription(enable_exactly_once_delivery=True)
        found.expiration_policy.SetInParent()
        return found

    def _delayed(self, own: str) -> Any:
        found = self._settings()
        found.name = self.subscription(later(own))
        found.topic = self.topic(later(own))
        found.ack_deadline_seconds = SHORTEST_DEADLINE
        found.message_retention_duration.seconds = LONGEST_RETENTION
        return found

    async def _topic(self, word: str) -> None:
        try:
            await self._calls.ask(calls.CREATE_TOPIC, wire.Topic(name=self.topic(word)))
        except TransportError as error:
            if not is_there(error):
                raise

    async def _create(self, name: str, wanted: Any) -> Any:
        """The subscription, or the one that is there already."""
        asked = wanted.message_retention_duration.seconds = min(self._kept, wanted.message_retention_duration.seconds)
        try:
            return await self._calls.ask(calls.CREATE, wanted, name)
        except TransportError as error:
            if is_there(error):
                request = wire.GetSubscriptionRequest(subscription=wanted.name)
                return await self._calls.ask(calls.GET, request, name)
            if "message_retention_duration" not in str(error) or asked <= _OLD_RETENTION:
                raise
        self._kept = _OLD_RETENTION
        return await self._create(name, wanted)

    async def _dead(self, name: str) -> str:
        """The topic for what the service itself puts aside: the queue's dead letters, or else one for all."""
        if not name.endswith(_DEAD):
            with suppress(QueueNotFoundError, InvalidValueError):  # no queue can have so long a name
                word = there(name + _DEAD)
                await self._calls.ask(calls.GET_TOPIC, wire.GetTopicRequest(topic=self.topic(word)))
                return self.topic(word)
        await self._topic(LOST)
        wanted = self._settings()
        wanted.name, wanted.topic = self.subscription(LOST), self.topic(LOST)
        wanted.message_retention_duration.seconds = LONGEST_RETENTION
        await self._create(LOST, wanted)
        return self.topic(LOST)

    async def _join_dead(self, name: str) -> None:
        """Have the queue of these dead letters use them, if it was made before them."""
        source = name.removesuffix(_DEAD)
        if source in {name, ""}:
            return
        try:
            found = await self._subscription(source)
            if found is None or found.dead_letter_policy.dead_letter_topic not in {self.topic(LOST), _GONE}:
                return
            changed = wire.Subscription(name=found.name)
            changed.dead_letter_policy.dead_letter_topic = self.topic(there(name))
            changed.dead_letter_policy.max_delivery_attempts = found.dead_letter_policy.max_delivery_attempts
            request = wire.UpdateSubscriptionRequest(subscription=changed)
            request.update_mask.paths.append("dead_letter_policy")
            await self._calls.ask(calls.UPDATE, request, source)
        except (AccessDeniedError, IncompatibleStoreError, InvalidValueError) as error:
            _log.debug("queue %s: its dead letters are not made known to Pub/Sub: %s", source, error)


def deadline(lease: float) -> int:
    """Seconds of a subscription's deadline, for leases of `lease` seconds."""
    return min(LONGEST_DEADLINE, max(SHORTEST_DEADLINE, math.ceil(lease + BLIND)))


def held(seconds: float) -> int:
    """Seconds for which the service is asked to keep what is held for so long."""
    return min(LONGEST_DEADLINE, math.ceil(seconds + BLIND))


def _kept(retention: float | None) -> int:
    return LONGEST_RETENTION if retention is None else min(LONGEST_RETENTION, math.ceil(retention) + _SPARE)
