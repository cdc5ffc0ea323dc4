"""Asks the service for one thing at a time, and maps what comes of it."""

from __future__ import annotations

import asyncio
import math
from asyncio import CancelledError
from collections import Counter
from typing import Any, NamedTuple

from google.protobuf.empty_pb2 import Empty

from oncue.core.errors import ConnectionLostError, ThrottledError, TransportClosedError
from oncue.transports.polling.lines import pause
from oncue.transports.pubsub import wire
from oncue.transports.pubsub.address import Address
from oncue.transports.pubsub.client import Door
from oncue.transports.pubsub.faults import fault, is_late


class Operation(NamedTuple):
    """One method of the service, and what it answers."""

    service: str
    name: str
    request: Any
    answer: Any


def _publisher(name: str, request: Any, answer: Any) -> Operation:
    return Operation("Publisher", name, request, answer)


def _subscriber(name: str, request: Any, answer: Any) -> Operation:
    return Operation("Subscriber", name, request, answer)


PUBLISH = _publisher("Publish", wire.PublishRequest, wire.PublishResponse)
CREATE_TOPIC = _publisher("CreateTopic", wire.Topic, wire.Topic)
GET_TOPIC = _publisher("GetTopic", wire.GetTopicRequest, wire.Topic)
DELETE_TOPIC = _publisher("DeleteTopic", wire.DeleteTopicRequest, Empty)
PULL = _subscriber("Pull", wire.PullRequest, wire.PullResponse)
ACKNOWLEDGE = _subscriber("Acknowledge", wire.AcknowledgeRequest, Empty)
CHANGE = _subscriber("ModifyAckDeadline", wire.ModifyAckDeadlineRequest, Empty)
CREATE = _subscriber("CreateSubscription", wire.Subscription, wire.Subscription)
GET = _subscriber("GetSubscription", wire.GetSubscriptionRequest, wire.Subscription)
UPDATE = _subscriber("UpdateSubscription", wire.UpdateSubscriptionRequest, wire.Subscription)
DELETE = _subscriber("DeleteSubscription", wire.DeleteSubscriptionRequest, Empty)
LIST = _subscriber("ListSubscriptions", wire.ListSubscriptionsRequest, wire.ListSubscriptionsResponse)


class Calls:
    """One channel, opened by `open`, and a new one when it went silent. `count` has how often each operation was asked for."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.count: Counter[str] = Counter()
        self._door = Door(address)
        self._channel: Any = None
        self._heard = asyncio.get_running_loop().time()
        self._stubs: dict[str, Any] = {}
        self._old: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Find credentials; nothing is asked yet. Raise `InvalidValueError` or `AccessDeniedError`."""
        try:
            await self._door.find()
            self._channel = self._door.open()
        except Exception as error:
            raise fault(error, self.address.shown) from error

    @property
    def is_silent(self) -> bool:
        """Whether nothing was answered for so long that the connection may be dead."""
        return asyncio.get_running_loop().time() - self._heard > 2 * (self.address.wait + self.address.timeout)

    @property
    def account(self) -> Any:
        """Who asks; None for an emulator."""
        return self._door.account

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        self._stubs.clear()
        for task in list(self._old):
            task.cancel()
        if self._old:
            await asyncio.wait(self._old)
        if channel is not None:
            await channel.close()

    async def ask(
        self,
        operation: Operation,
        request: Any,
        queue: str | None = None,
        *,
        within: float | None = None,
        until: float = math.inf,
    ) -> Any:
        """The answer, within the time that the address allows, or `within` seconds.

        What is refused as too much is asked again within that time, and not after `until`; then that is `ThrottledError`.
        """
        loop = asyncio.get_running_loop()
        deadline = min(until, loop.time() + self.address.timeout)
        attempt = 0
        while True:
            try:
                return await self._once(operation, request, queue, within)
            except ThrottledError:
                seconds = pause(attempt)
                attempt += 1
                if loop.time() + seconds > deadline:
                    raise
            await asyncio.sleep(seconds)

    async def _once(self, operation: Operation, request: Any, queue: str | None, within: float | None) -> Any:
        channel = self._channel
        if channel is None:
            raise TransportClosedError
        self.count[operation.name] += 1
        try:
            answer = await self._stub(operation)(request, timeout=self.address.timeout if within is None else within)
            self._heard = asyncio.get_running_loop().time()
            return answer
        except CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if self._channel is None:
                raise TransportClosedError from None
            raise ConnectionLostError(f"{self.address.shown}: the connection was given up") from None
        except Exception as error:
            if self._channel is None:
                raise TransportClosedError from error
            found = fault(error, self.address.shown, queue)
            found.__cause__ = error
            if within is None and is_late(found):
                self._renew(channel)
            raise found from error

    def _stub(self, operation: Operation) -> Any:
        found = self._stubs.get(operation.name)
        if found is None:
            found = self._stubs[operation.name] = self._channel.unary_unary(
                f"/google.pubsub.v1.{operation.service}/{operation.name}",
                request_serializer=operation.request.SerializeToString,
                response_deserializer=operation.answer.FromString,
            )
        return found

    def _renew(self, silent: Any) -> None:
        """What does not answer may be a connection whose other end is gone: nothing more is asked over it."""
        if self._channel is not silent:
            return
        self._channel = self._door.open()
        self._stubs.clear()
        task = asyncio.ensure_future(silent.close(grace=self.address.timeout + self.address.wait + 1.0))
        self._old.add(task)
        task.add_done_callback(self._old.discard)
