"""What runs in other processes: each function gets a pipe to talk over, and may be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import count
from multiprocessing.connection import Connection as Pipe
from typing import Any

from redis.asyncio import Connection

from oncue.core.errors import LeaseLostError, TransportError
from oncue.core.message import Message, Send
from oncue.transports.base import Subscription
from oncue.transports.redis import open_redis


def sender(pipe: Pipe, url: str, first: int, at_once: int = 20) -> None:
    """Send for ever, say each number that is stored."""

    async def main() -> None:
        transport = await open_redis(url)
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


def hopper(pipe: Pipe, url: str, at_once: int = 20) -> None:
    """Hand on from one queue to two others, for ever: to `next` with the acknowledgement, and to `copies` before it."""

    async def main() -> None:
        transport = await open_redis(url)

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


def holder(pipe: Pipe, url: str) -> None:
    """Hold one message and settle it as told."""

    async def main() -> None:
        transport = await open_redis(url)
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
                    else:
                        await lease.extend(60)
                    pipe.send("done")
                except TransportError as error:
                    pipe.send(type(error).__name__)

    asyncio.run(main())


def dying(pipe: Pipe, url: str, moment: int) -> None:
    """Hand one message on, and die of SIGKILL at a moment of it: before what it writes, in turn, and after it."""

    async def main() -> None:
        transport = await open_redis(url)
        moments = count(1)
        write = Connection.send_packed_command

        def here(what: str) -> None:
            pipe.send(what)
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        async def write_and_die(self: Connection, packed: Any, check_health: bool = True) -> None:
            here("before a write")
            await write(self, packed, check_health)
            here("after a write")

        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await subscription.receive()
            Connection.send_packed_command = write_and_die  # type: ignore[method-assign]
            here("after it was received")
            await lease.ack(Send("next", lease.message))
            here("after it was acknowledged")
        await transport.close()
        pipe.send("end")

    asyncio.run(main())


def poisoned(pipe: Pipe, url: str, at_once: int) -> None:
    """Hold many messages for a moment each, and die of the one that is called poison."""

    async def main() -> None:
        transport = await open_redis(url)

        async def work(subscription: Subscription) -> None:
            while True:
                lease = await subscription.receive()
                await asyncio.sleep(0.05)
                if lease.message.id == "poison":
                    os.kill(os.getpid(), signal.SIGKILL)
                await lease.ack(Send("next", lease.message))

        async with transport.subscribe("work", prefetch=at_once) as subscription:
            pipe.send("ready")
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(work(subscription))

    asyncio.run(main())
