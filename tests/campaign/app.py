"""What the campaign's processes run: an app of two actors (`worker`), and a program that sends to it (`sender`).

A message is `[session, number, 0]`. What becomes of it hangs on its number: most land once, some fan out, some fail once on
the way, some end as dead letters.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

from oncue import App, Context, Retry, Stop
from oncue.core.errors import TransportError

ITEMS = 3
RETRIES = Retry(max_attempts=10_000, base=0.05, cap=0.2)
LANDED = "landed"
LEASE = 1.0
BLIND_PAUSE = 0.5
"""Seconds between fifty messages, where it cannot be told how many wait."""

app = App()
Note = list[int]


def fans_out(number: int) -> bool:
    return number % 10 == 3


def dies(number: int) -> bool:
    return number % 10 == 7


def fails_first(number: int) -> bool:
    return number % 10 == 5


@app.actor(lease=LEASE, retry=RETRIES, concurrency=16)
async def carry(note: Note, context: Context) -> Note | list[Note]:
    """The first hop."""
    session, number, _ = note
    await asyncio.sleep(random.choice((0.0, 0.0, 0.002, 0.02)))
    if dies(number):
        context.dead("on purpose")
    if fails_first(number) and context.attempt == 1:
        raise RuntimeError("once, on purpose")
    if fans_out(number):
        return [[session, number, item] for item in range(ITEMS)]
    return [note]


@app.actor(lease=LEASE, retry=RETRIES, concurrency=16)
async def hand_on(note: Note, context: Context) -> None:
    """The second hop, on another way: sent from the handler, and out with the acknowledgement."""
    await asyncio.sleep(random.choice((0.0, 0.0, 0.002)))
    context.send(LANDED, note)


async def worker() -> None:
    """Run the actors until told to stop."""
    stop = Stop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.gently, 2.0)
    async with app:
        say("ready")
        await app.work(stop)


async def sender(session: int, most: int) -> None:
    """Send as long as fewer than `most` messages wait; say each number that is stored."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with app:
        say("ready")
        transport = app._connection.transport if app._connection else None
        assert transport is not None
        number = 0
        while not stopped.is_set():
            ready = (await transport.depth("asya-carry")).ready
            if ready is None:  # nobody can tell how much waits
                await asyncio.sleep(BLIND_PAUSE)
            elif ready > most:
                await asyncio.sleep(0.05)
                continue
            await asyncio.gather(*(send(session, number + n) for n in range(50)))
            number += 50


async def send(session: int, number: int) -> None:
    try:
        await app.send(carry, [session, number, 0], route=[hand_on], delay=0.1 if number % 10 == 9 else 0)
    except TransportError as error:  # not acknowledged: it may have been stored or not
        print(error, file=sys.stderr)
        return
    say(str(number))


def say(word: str) -> None:
    """A line that is there whole or not at all, also if this process is killed."""
    os.write(1, f"{word}\n".encode())


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(worker())
    else:
        asyncio.run(sender(int(sys.argv[2]), int(sys.argv[3])))
