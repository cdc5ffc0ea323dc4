"""What runs in other processes: the function gets a pipe to talk over, and is killed by what it works on."""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing.connection import Connection as Pipe

from oncue.transports import open_transport
from oncue.transports.base import Subscription


def poisoned(pipe: Pipe, url: str, at_once: int) -> None:
    """Hold what it gets, and die in the moment of receiving the one that is called poison."""

    async def main() -> None:
        transport = await open_transport(url)

        async def work(subscription: Subscription) -> None:
            while True:
                lease = await subscription.receive()
                if lease.message.id == "poison":
                    os.kill(os.getpid(), signal.SIGKILL)
                await asyncio.sleep(0.5)
                await lease.ack()

        async with transport.subscribe("work", prefetch=at_once) as subscription:
            pipe.send("ready")
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(work(subscription))

    asyncio.run(main())
