"""How messages wait: down a ladder of queues that each keep what they get for a power of two of milliseconds.

A delay is rounded up to six binary digits, at most 3 % more, and each digit that is set is a queue to lie in. The routing key
tells the way: `13.11.e.asya-x` goes to the queue of 2¹³ ms, from there to that of 2¹¹ ms, and then to the exchange `oncue.due`,
which knows the queue at the end. One queue for all delays would not do: only the message at its head can be over. What finds no
queue, because it was deleted meanwhile, goes to the queue `oncue.undeliverable`, and holds up nobody.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from oncue.core.errors import InvalidValueError
from oncue.core.message import check_delay
from oncue.transports.rabbitmq.amqp import ChannelClosed, ClosedError
from oncue.transports.rabbitmq.calls import Calls
from oncue.transports.rabbitmq.faults import PRECONDITION, fault

EXCHANGE = "oncue.delay"
DUE = "oncue.due"
UNDELIVERABLE = "oncue.undeliverable"
_LOWEST, _HIGHEST = 4, 31
_DIGITS = 6
_LONGEST_MS = ((1 << _DIGITS) - 1) << (_HIGHEST + 1 - _DIGITS)
LONGEST = _LONGEST_MS / 1000
"""Seconds; the longest delay."""
_KEPT = 7 * 86400 * 1000
"""Milliseconds for which what could not be delivered is kept."""
_FRESH = 1.0
"""Seconds for which a queue is taken to be there still."""


def levels(seconds: float) -> list[int]:
    """The queues that a message has to lie in, as powers of two; raise `InvalidValueError` for what is no delay here. Pure."""
    if check_delay(seconds) > LONGEST:
        raise InvalidValueError(
            f"delay {seconds!r}: expected at most {LONGEST:.0f} seconds, which is what RabbitMQ can do"
        )
    ms = -int(-seconds * 1000 // 1)
    low = max(_LOWEST, ms.bit_length() - _DIGITS)
    steps = -(-ms >> low) or 1
    return [level + low for level in reversed(range(_DIGITS + 1)) if steps >> level & 1]


def key_of(queue: str, way: Sequence[int]) -> str:
    """The routing key for that way. Pure."""
    return ".".join([*map(str, way), "e", _word(queue)])


def _word(queue: str) -> str:
    """Dots separate the words of a key."""
    return queue.replace(".", "/")


class Ladder:
    """Makes what a delay needs when it is first needed."""

    def __init__(self, calls: Calls, kind: str) -> None:
        self._calls = calls
        self._kind = kind
        self._lock = asyncio.Lock()
        self._made: set[object] = set()
        self._bound: dict[str, float] = {}

    def forget(self) -> None:
        """What was made may not be there any more."""
        self._made.clear()
        self._bound.clear()

    async def bind(self, queue: str) -> None:
        """Have what is due for a queue arrive there. Raise `QueueNotFoundError` if there is none."""
        now = get_running_loop().time()
        if self._bound.get(queue, 0.0) + _FRESH > now:
            return
        async with self._lock:
            await self._make_ends()
        await self._calls.ask(commands.Queue.Bind(queue=queue, exchange=DUE, routing_key=f"#.e.{_word(queue)}"))
        if len(self._bound) > 1000:
            self._bound.clear()
        self._bound[queue] = now

    async def prepare(self, way: Sequence[int]) -> None:
        """Have all that is on the way."""
        wanted = [*way, *pairwise(way)]
        if self._made.issuperset(wanted):
            return
        async with self._lock:
            await self._make_ends()
            for level in way:
                await self._make_level(level)
            for pair in pairwise(way):
                await self._make_step(*pair)

    async def _make_ends(self) -> None:
        if DUE in self._made:
            return
        alternate = {"alternate-exchange": UNDELIVERABLE}
        await self._ask(
            commands.Exchange.Declare(exchange=UNDELIVERABLE, exchange_type="fanout", durable=True),
            _queue(UNDELIVERABLE, {"x-queue-type": self._kind, "x-message-ttl": _KEPT}),
            commands.Queue.Bind(queue=UNDELIVERABLE, exchange=UNDELIVERABLE, routing_key=""),
            _exchange(EXCHANGE, alternate),
            _exchange(DUE, alternate),
        )
        self._made.add(DUE)

    async def _make_level(self, level: int) -> None:
        if level in self._made:
            return
        name = _name(level)
        arguments: dict[str, Any] = {
            "x-queue-type": self._kind,
            "x-message-ttl": 1 << level,
            "x-dead-letter-exchange": name,
        }
        if self._kind == "quorum":  # else the server may lose what it moves
            arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        await self._ask(
            _exchange(name, {"alternate-exchange": UNDELIVERABLE}),
            _queue(name, arguments),
            commands.Queue.Bind(queue=name, exchange=EXCHANGE, routing_key=f"{level}.#"),
            commands.Exchange.Bind(destination=DUE, source=name, routing_key=f"#.{level}.e.*"),
        )
        self._made.add(level)

    async def _make_step(self, higher: int, lower: int) -> None:
        if (higher, lower) in self._made:
            return
        key = f"#.{higher}.{lower}.#"
        await self._ask(commands.Queue.Bind(queue=_name(lower), exchange=_name(higher), routing_key=key))
        self._made.add((higher, lower))

    async def _ask(self, *requests: Frame) -> None:
        for request in requests:
            try:
                await self._calls.try_to(request)
            except ChannelClosed as error:
                if error.code != PRECONDITION or not isinstance(request, commands.Queue.Declare):
                    raise fault(error, self._calls.link.address.shown) from error
                # Others made it of the other type, or let it keep messages in another way, which does as well.
            except (ClosedError, TimeoutError) as error:
                raise fault(error, self._calls.link.address.shown) from error


def _name(level: int) -> str:
    return f"{EXCHANGE}.{level}"


def _exchange(name: str, arguments: Mapping[str, Any]) -> Frame:
    return commands.Exchange.Declare(exchange=name, exchange_type="topic", durable=True, arguments=dict(arguments))


def _queue(name: str, arguments: Mapping[str, Any]) -> Frame:
    return commands.Queue.Declare(queue=name, durable=True, arguments=dict(arguments))
