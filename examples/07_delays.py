"""Delays and ids.

A delayed message waits in the store, not in anybody's memory: all programs may end and come back meanwhile. An id of your own
makes a message easy to find again.
"""

import asyncio
import time

from oncue import App

app = App("sqlite:///jobs.db")
started = time.monotonic()
breakfast = asyncio.Event()


@app.actor
async def remind(text: str) -> None:
    early = time.monotonic() - started < {"water": 0, "soft": 1, "hard": 2}[text]
    print(f"{text}: {'too early' if early else 'not too early'}")
    if text == "hard":
        breakfast.set()


async def main() -> None:
    async with app:
        await remind.send("hard", delay=2, id="hard-eggs")
        await remind.send("soft", delay=1, id="soft-eggs")
        await remind.send("water")

    async with app.working():
        await breakfast.wait()


asyncio.run(main())
