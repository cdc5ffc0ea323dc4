"""Consumers and producers that run in other processes, on any transport, and may be killed at any moment.

Each function gets a pipe to talk over and the URL of the transport.
"""

from __future__ import annotations

import asyncio
from itertools import count
from multiprocessing.connection import Connection

from oncue.core.errors import LeaseLostError, TransportError
from oncue.core.message import Message, Send
from oncue.transports import open_transport
from oncue.transports.base import Subscription


def sender(pipe: Connection, url: str, first: int, at_once: int = 20) -> None:
    """Send for ever, say each number that is stored."""

    async def main() -> None:
        transport = await open_transport(url)
        numbers = count(first)

        async def send() -> None:
            for number in numbers:
                await transport.send(Send("work", Message(b"body", str(number))))
                pipe.send(number)

        pipe.send("ready")
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(send())

    asyncio.run(main())


def hopper(pipe: Connection, url: str, at_once: int = 20) -> None:
    """Hand on from one queue to two others, for ever: to `next` with the acknowledgement, and to `copies` before it."""

    async def main() -> None:
        transport = await open_transport(url)

        async def hop(subscription: Subscription) -> None:
            while True:
                lease = await subscription.receive()
                await transport.send(Send("copies", lease.message))
                try:
                    await lease.ack(Send("next", lease.message))
                except LeaseLostError:
                    continue

        async with transport.subscribe("work", prefetch=at_once) as subscription:
            pipe.send("ready")
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(hop(subscription))

    asyncio.run(main())


def holder(pipe: Connection, url: str) -> None:
    """Receive one message, say its id and attempt, then do with it what is told and say what came of it."""

    async def main() -> None:
        transport = await open_transport(url)
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await subscription.receive()
            pipe.send((lease.message.id, lease.attempt))
            while True:
                word = await asyncio.to_thread(pipe.recv)
                try:
                    if word == "ack":
                        await lease.ack(Send("next", lease.message))
                    elif word == "nack":
                        await lease.nack()
                    elif word == "extend":
                        await lease.extend(60)
                    else:
                        break
                    pipe.send("done")
                except TransportError as error:
                    pipe.send(type(error).__name__)
        await transport.close()

    asyncio.run(main())
