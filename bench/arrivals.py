"""The app whose worker `bench.alone` watches: each message says when it was sent, and its handler how long that took."""

from __future__ import annotations

import os
import time

from oncue import App

app = App()


@app.actor
async def arrive(sent_at: int) -> None:
    took = time.monotonic_ns() - sent_at
    with open(os.environ["BENCH_ARRIVALS"], "a", encoding="ascii") as file:  # noqa: ASYNC230, PTH123
        file.write(f"{took}\n")
