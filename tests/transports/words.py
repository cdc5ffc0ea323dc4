"""Words that the tests of all brokers are written in: what to do until it succeeds, however often a connection breaks."""

from __future__ import annotations

import asyncio

from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message, Send
from oncue.transports.base import Lease, Subscription, Transport

SOON = 15.0
"""Seconds that a test waits for what has to happen at once, before it fails."""


def sends(count: int, queue: str = "work", first: int = 0) -> list[Send]:
    return [Send(queue, Message(b"body", str(number))) for number in range(first, first + count)]


async def receive(subscription: Subscription, within: float = SOON) -> Lease:
    """The next lease, however often the connection breaks."""
    async with asyncio.timeout(within):
        while True:
            try:
                return await subscription.receive()
            except ConnectionLostError:
                await asyncio.sleep(0.01)


async def send_surely(transport: Transport, *sends: Send) -> None:
    """Repeat what was not confirmed."""
    while True:
        try:
            await transport.send(*sends)
            return
        except ConnectionLostError:
            await asyncio.sleep(0.01)
