"""Fan-out: one message becomes many, or none.

An actor that returns a list, or yields, sends each item on by itself; several workers can share them. `None` ends the route.
Whoever waits for the result gets the results of all branches, in the order of the tree, however they finished.
"""

import asyncio
from collections.abc import Iterator

from oncue import App

app = App("sqlite:///jobs.db")


@app.actor
def pages(book: str) -> list[str]:  # handlers need not be async; this one runs in a thread
    return [f"{book}, page {number}" for number in (1, 2, 3)]


@app.actor
def lines(page: str) -> Iterator[str]:
    for number in (1, 2):
        yield f"{page}, line {number}"


@app.actor
async def read(line: str) -> str | None:
    if "page 2" in line:
        return None  # an empty page
    return f"read {line}"


async def main() -> None:
    async with app.working():
        for result in await pages.call("Alice", route=[lines, read], timeout=10):
            print(result)


asyncio.run(main())
