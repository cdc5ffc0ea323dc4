"""Work that goes on while its server does not, or its connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol

from transports.words import send_surely, sends

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError
from oncue.core.message import Send
from oncue.transports.base import Lease, Subscription, Transport

PUBLISHERS = 100


class Server(Protocol):
    def start(self) -> None: ...
    def kill(self) -> None: ...


def kill_and_start(server: Server) -> None:
    server.kill()
    server.start()


async def flow(
    sender: Transport,
    subscription: Subscription,
    total: int,
    troubles: Mapping[int, Callable[[], object]],
    *,
    queue: str = "work",
    consumers: int = 50,
    settle: Callable[[Lease], Awaitable[None]] = lambda lease: lease.ack(),
    within: float = 40.0,
) -> Counter[str]:
    """How often each of `total` messages was seen, of which publishers repeat what was not confirmed, once all were.

    troubles: what happens in a thread when so many were seen. within: seconds until all are seen after the last of it.
    """
    seen = Counter[str]()
    everything = asyncio.Event()

    async def publish(numbers: range) -> None:
        for number in numbers:
            await send_surely(sender, *sends(1, queue, number))
            await asyncio.sleep(0)

    async def consume() -> None:
        while True:
            try:
                lease = await subscription.receive()
                seen[lease.message.id] += 1
                if len(seen) == total:
                    everything.set()
                await settle(lease)
            except LeaseLostError:
                continue
            except (ConnectionLostError, QueueNotFoundError):
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(publish(range(first, total, PUBLISHERS))) for first in range(PUBLISHERS)]
    tasks += [asyncio.create_task(consume()) for _ in range(consumers)]
    try:
        for count, trouble in troubles.items():
            while len(seen) < count:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(trouble)
        async with asyncio.timeout(within):
            await everything.wait()
    finally:
        await end(tasks)
    return seen


async def hop(subscription: Subscription, queue: str, patience: Callable[[], float | None]) -> None:
    """Move messages to `queue` until cancelled; each move is cancelled itself after as many seconds as `patience` says, if any."""

    async def move() -> None:
        with suppress(ConnectionLostError, LeaseLostError):
            lease = await subscription.receive()
            await lease.ack(Send(queue, lease.message))

    while True:
        moving = asyncio.ensure_future(move())
        try:
            await asyncio.wait([moving], timeout=patience())
        finally:
            moving.cancel()
        await asyncio.wait([moving])


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
