"""What runs in other processes: each function gets a pipe to talk over, and may be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import count
from multiprocessing.connection import Connection as Pipe
from typing import Any

from redis.asyncio import Connection

from oncue.core.message import Send
from oncue.transports.base import Subscription
from oncue.transports.redis import open_redis


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
