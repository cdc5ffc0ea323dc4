"""What runs in other processes: each function gets a pipe to talk over, and may be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from itertools import count
from multiprocessing.connection import Connection

from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec, Subscription
from oncue.transports.sqlite import open_sqlite


def dying(pipe: Connection, url: str, statement: int) -> None:
    """Hand one message on, and die of SIGKILL when the store executes this statement of it, counted from 1."""

    async def main() -> None:
        transport = await open_sqlite(url)
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await subscription.receive()
            executed = count(1)
            statements = []

            def trace(text: str) -> None:
                statements.append(text.split(maxsplit=1)[0])
                if next(executed) == statement:
                    os.kill(os.getpid(), signal.SIGKILL)

            store = transport.port.writer._store
            assert store is not None
            store.connection.set_trace_callback(trace)
            await lease.ack(Send("next", lease.message))
            pipe.send(statements)
            await asyncio.sleep(60)

    asyncio.run(main())


def one_of_many(pipe: Connection, url: str, first: int, share: int, total: int) -> None:
    """Send a share of the messages while receiving whatever comes; say which were received."""

    async def main() -> None:
        transport = await open_sqlite(url)
        await transport.declare(QueueSpec(name="work", lease=120.0))
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        came: list[str] = []

        async def work(subscription: Subscription) -> None:
            while True:
                lease = await subscription.receive()
                await lease.ack()
                came.append(lease.message.id)

        async with transport.subscribe("work", prefetch=20) as subscription:
            workers = [asyncio.ensure_future(work(subscription)) for _ in range(20)]
            await asyncio.gather(*(transport.send(Send("work", Message(b"", str(first + n)))) for n in range(share)))
            pipe.send("sent")
            await asyncio.to_thread(pipe.recv)
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
        await transport.close()
        pipe.send(came)

    asyncio.run(main())


def listener(pipe: Connection, url: str) -> None:
    """Say of each message when it came, and how much of the processor was used since the one before."""

    async def main() -> None:
        transport = await open_sqlite(url)
        async with transport.subscribe("work", prefetch=1) as subscription:
            pipe.send("ready")
            used = time.process_time()
            while True:
                lease = await subscription.receive()
                came = time.monotonic()
                before, used = used, time.process_time()
                await lease.ack()
                pipe.send((came, used - before))

    asyncio.run(main())
