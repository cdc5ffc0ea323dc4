"""Delays and ids.

A delayed message waits in the store, not in anybody's memory: all programs may end and come back meanwhile. An id of your own
makes a message easy to find again.
"""

import asyncio
import time

from oncue import App

app = App("sqlite:///jobs.db")
started = time.monotonic()


@app.actor
async def remind(text: str) -> None:
    print(f"after {time.monotonic() - started:.0f} s: {text}")


async def main() -> None:
    async with app:
        await remind.send("the eggs are hard", delay=2, id="hard-eggs")
        await remind.send("the eggs are soft", delay=1, id="soft-eggs")
        await remind.send("the water boils")

    async with app.working():
        await asyncio.sleep(3)


asyncio.run(main())
