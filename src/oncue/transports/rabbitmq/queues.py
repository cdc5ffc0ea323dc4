"""Queues: made, compared, counted and deleted. What a queue is in the server and what the registry says of it go together."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pamqp import commands

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    QueueMismatchError,
    QueueNotFoundError,
    TransportError,
)
from oncue.core.message import Message
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.rabbitmq.address import ASYA, Address
from oncue.transports.rabbitmq.amqp import Channel, ChannelClosed, ClosedError, Delivery
from oncue.transports.rabbitmq.calls import Calls
from oncue.transports.rabbitmq.codec import Parcel, Received, decode, repeat
from oncue.transports.rabbitmq.faults import PRECONDITION, fault
from oncue.transports.rabbitmq.ladder import Ladder
from oncue.transports.rabbitmq.publisher import Publisher
from oncue.transports.rabbitmq.registry import Record, Registry
from oncue.transports.stages import SUSPECT

_log = logging.getLogger("oncue.transports.rabbitmq")

_PREFIX = "asya-"
"""What Asya leaves out of a queue's name to make its routing key."""
_DIFFERS = re.compile(r"inequivalent arg '([^']*)' for queue .*?: received (.*) but current is (.*)$", re.DOTALL)
_VALUE = re.compile(r"the value '(.*)' of type '\w+'$|'(.*)'$", re.DOTALL)
_LOSING = frozenset({"x-message-ttl", "x-expires", "x-max-length", "x-max-length-bytes"})
"""Settings by which the server drops messages."""
MOST_PEEKED = 10_000
"""Messages that are shown at once, whatever the limit."""
_LAST_RITES = 0.1
"""Seconds in which consumers are told that their queue is gone. One of the same name that is there sooner keeps the server from
telling them, and they would wait for ever."""
_FORGETFUL = 0.1
"""Seconds within which a channel of the server that is closed may forget what was acknowledged, where that are many messages."""
_ADOPTED = 8
"""So many settings of a foreign queue are taken over, one after the other."""


class Queues:
    """Asks over `calls`, and keeps what it does in `registry`."""

    def __init__(
        self, address: Address, calls: Calls, publisher: Publisher, registry: Registry, ladder: Ladder
    ) -> None:
        self._address = address
        self._calls = calls
        self._publisher = publisher
        self._registry = registry
        self._ladder = ladder
        self._exchange: str | None = None

    async def declare(self, spec: QueueSpec) -> None:
        """Make it, or find that it is there with the same settings; raise `QueueMismatchError` if it has others."""
        name = spec.name
        known = (await self._registry.read()).get(name)
        if known is not None and known != spec:
            if await self._count(name) is not None:
                check_equal(known, spec)
            await self._registry.write(Record(name))  # somebody deleted it without a word
        await self._make(spec)
        await self._ladder.bind(name)
        await self._bind(name)
        found = (await self._registry.read()).get(name)
        if found is None:
            await self._registry.write(Record(name, spec))
            found = (await self._registry.read()).get(name, spec)
        check_equal(found, spec)

    async def delete(self, name: str) -> None:
        # First the record: whoever declares the queue in between writes a new one.
        if name in await self._registry.read():
            await self._registry.write(Record(name))
        there = await self._status(name)
        await self._calls.ask(commands.Queue.Delete(queue=name))
        if there is not None and there.consumer_count:
            await asyncio.sleep(_LAST_RITES)

    async def declared(self) -> Sequence[QueueSpec]:
        """Those that were declared and are there, by name."""
        known = dict(await self._registry.read())
        counts = await asyncio.gather(*map(self._count, known))
        there = [spec for spec, count in zip(known.values(), counts, strict=True) if count is not None]
        return sorted(there, key=lambda spec: spec.name)

    async def get(self, name: str) -> QueueSpec:
        """As it was declared; one that others made has the defaults. Raise `QueueNotFoundError` if there is none."""
        await self.count(name)
        return (await self._registry.read()).get(name) or QueueSpec(name=name)

    async def count(self, name: str) -> int:
        """How many messages are ready. Raise `QueueNotFoundError`."""
        count = await self._count(name)
        if count is None:
            raise QueueNotFoundError(name)
        return count

    async def purge(self, name: str) -> int:
        """Drop what is ready; how many those were."""
        dropped: int = (await self._calls.ask(commands.Queue.Purge(queue=name))).message_count
        return dropped

    async def look(self, name: str, limit: int) -> Sequence[Message]:
        """The first messages. They are hidden from others meanwhile, and then go back as if a consumer had died.

        Those that would become suspects by being looked at once more are published anew instead, behind all others.
        """
        spec = await self.get(name)
        try:
            connection = await self._calls.link.connection()
            channel = await connection.channel()
            try:
                found = await self._take(channel, name, min(limit, MOST_PEEKED))
                marked = [(delivery, received) for delivery, received in found if received.lost + 1 >= SUSPECT]
                anew = [
                    Parcel("", name, repeat(delivery, received, retention=spec.retention), delivery.body)
                    for delivery, received in marked
                ]
                if anew:
                    with suppress(TransportError):  # then they are counted after all
                        await self._publisher.send(anew)
                        for delivery, _ in marked:
                            channel.ack(delivery.tag)
                        await asyncio.sleep(_FORGETFUL)
            finally:
                await channel.close()
        except ClosedError as error:
            raise fault(error, self._address.shown) from error
        return [received.message for _, received in found]

    async def _take(self, channel: Channel, name: str, limit: int) -> list[tuple[Delivery, Received]]:
        found: list[tuple[Delivery, Received]] = []
        while len(found) < limit:
            delivery = await channel.get(name)
            if delivery is None:
                break
            found.append((delivery, decode(delivery)))
        return found

    async def _count(self, name: str) -> int | None:
        there = await self._status(name)
        return None if there is None else there.message_count

    async def _status(self, name: str) -> commands.Queue.DeclareOk | None:
        """What the server tells of a queue; None if there is none."""
        try:
            status: commands.Queue.DeclareOk = await self._calls.ask(commands.Queue.Declare(queue=name, passive=True))
        except QueueNotFoundError:
            return None
        return status

    async def _make(self, spec: QueueSpec) -> None:
        """Declare it, with those settings of an existing one that lose no message."""
        arguments = await self._arguments(spec)
        for _ in range(_ADOPTED):
            try:
                await self._calls.try_to(commands.Queue.Declare(queue=spec.name, durable=True, arguments=arguments))
            except (ClosedError, TimeoutError) as error:
                differs = _DIFFERS.search(error.text) if isinstance(error, ChannelClosed) else None
                if differs is None:
                    raise fault(error, self._address.shown) from error
                self._adopt(spec, arguments, *differs.groups())
            else:
                return
        raise ConnectionLostError(f"{self._address.shown}: queue {spec.name!r} has ever other settings")

    async def _arguments(self, spec: QueueSpec) -> dict[str, Any]:
        kind = self._address.queues or "quorum"
        arguments: dict[str, Any] = {"x-queue-type": kind}
        if spec.retention is not None:
            arguments["x-message-ttl"] = max(1, round(spec.retention * 1000))
        connection = await self._calls.link.connection()
        if kind == "quorum" and _major(connection.server.get("version")) >= 4:
            arguments["x-delivery-limit"] = -1  # by default those servers drop what was returned twenty times
        return arguments

    def _adopt(self, spec: QueueSpec, arguments: dict[str, Any], name: str, received: str, current: str) -> None:
        """Take over how a queue is, or raise that it is another one than asked for."""
        have, asked = _value(current), _value(received)
        if name == "x-message-ttl":
            raise QueueMismatchError(spec.name, {"retention": (_seconds(have), spec.retention)})
        own = name == "x-queue-type" and (self._address.queues is not None or have not in {None, "classic", "quorum"})
        if not name.startswith("x-") or name in _LOSING or own:
            raise QueueMismatchError(spec.name, {name: (have or "classic" if own else have, asked)})
        if have is None:
            arguments.pop(name, None)
        else:
            arguments[name] = int(have) if have.lstrip("-").isdecimal() else have

    async def _bind(self, name: str) -> None:
        """Let the messages of Asya's gateways and sidecars reach it."""
        asked = self._address.exchange
        exchange = ASYA if asked is None else asked
        if not exchange:
            return
        try:
            if self._exchange is None:
                await self._ask_for_exchange(exchange)
            self._exchange = exchange
            key = name.removeprefix(_PREFIX)
            await self._calls.ask(commands.Queue.Bind(queue=name, exchange=exchange, routing_key=key))
        except (AccessDeniedError, QueueMismatchError) as error:
            if asked is not None:
                raise
            _log.debug("queue %s is not bound to the exchange %r: %s", name, exchange, error)
        except TransportError:
            self._exchange = None
            raise

    async def _ask_for_exchange(self, exchange: str) -> None:
        request = commands.Exchange.Declare(exchange=exchange, exchange_type="topic", durable=True)
        try:
            await self._calls.try_to(request)
        except (ClosedError, TimeoutError) as error:
            if isinstance(error, ChannelClosed) and error.code == PRECONDITION:
                raise QueueMismatchError(exchange, {"exchange": ("of another type", "topic")}) from error
            raise fault(error, self._address.shown) from error


def _value(shown: str) -> str | None:
    """What the server shows of a setting, as in `the value '1000' of type 'long'` or `none`."""
    found = _VALUE.match(shown)
    return None if found is None else found[1] if found[1] is not None else found[2]


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds is not None and milliseconds.isdecimal() else None


def _major(version: object) -> int:
    if isinstance(version, bytes):
        version = version.decode(errors="replace")
    number = str(version).partition(".")[0]
    return int(number) if number.isdecimal() else 0
