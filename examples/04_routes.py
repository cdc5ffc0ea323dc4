"""Routes: what one actor returns goes to the next.

The message carries its own route. An actor does not know who comes next, so the same one can be part of many routes.
"""

import asyncio

from oncue import App

app = App("sqlite:///jobs.db")


@app.actor
async def tidy(text: str) -> str:
    return " ".join(text.split())


@app.actor
async def shout(text: str) -> str:
    return text.upper() + "!"


@app.actor
async def box(text: str) -> str:
    return f"[ {text} ]"


async def main() -> None:
    async with app.working():
        print(await tidy.call("  mind   the gap ", timeout=10))
        print(await tidy.call("  mind   the gap ", route=[shout], timeout=10))
        print(await tidy.call("  mind   the gap ", route=[box, shout], timeout=10))
        print(await tidy.call("  mind   the gap ", route=["shout", "box"], timeout=10))  # names do as well


asyncio.run(main())
