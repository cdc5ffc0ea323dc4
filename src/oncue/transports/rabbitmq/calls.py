"""Asks the server for one thing at a time: queues, exchanges and bindings. What it refuses costs a channel, not the connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pamqp.base import Frame

from oncue.transports.rabbitmq.amqp import Channel, ClosedError
from oncue.transports.rabbitmq.faults import INTERNAL_ERROR, fault
from oncue.transports.rabbitmq.link import Link

Answer = TypeVar("Answer")

_NOT_READY = re.compile(r"is down or inaccessible|does not have a replica")
"""What is said of queues while a server starts, or a queue is being made."""
_PAUSE = 0.1
_MOST = 16
"""Channels; so much may be asked at the same time."""


async def until_ready(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask once more as long as the answer is that what is asked about is not ready yet.

    A stream that somebody else is just making is a fault within RabbitMQ, which costs the connection; `ask` has to find another.
    """
    while True:
        try:
            return await ask()
        except ClosedError as error:
            if error.code != INTERNAL_ERROR and not _NOT_READY.search(error.text):
                raise
        await asyncio.sleep(_PAUSE)


class Calls:
    """Keeps the channels that were asked over for the next question."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._room = asyncio.Semaphore(_MOST)
        self._free: list[Channel] = []

    async def ask(self, request: Frame) -> Any:
        """The answer. Raises errors of ours only; may be cancelled, and is answered for all that."""
        try:
            return await self.try_to(request)
        except (ClosedError, TimeoutError) as error:
            raise fault(error, self.link.address.shown) from error

    async def try_to(self, request: Frame) -> Any:
        """As `ask`, but what the server says against it is raised as `ClosedError`."""
        async with self._room, asyncio.timeout(self.link.address.timeout):
            return await until_ready(lambda: self._call(request))

    async def _call(self, request: Frame) -> Any:
        channel = await self._channel()
        try:
            return await channel.call(request)
        finally:  # answers come in order, so that one that is not waited for does no harm
            if not channel.closed.done():
                self._free.append(channel)

    async def _channel(self) -> Channel:
        while self._free:
            channel = self._free.pop()
            if not channel.closed.done():
                return channel
        connection = await self.link.connection()
        return await connection.channel()
