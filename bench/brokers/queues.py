"""Many queues in one process: `python -m bench.brokers.queues URL QUEUES JOBS`.

Sends the jobs evenly to so many actors of one app, and then works them off, each queue by a consumer of its own that handles 100
messages at a time, as it does by itself. Prints a line of JSON: the seconds of `start`, from before the consumers start to the
first handler's call, the `seconds` from there to the last one, those of the processor in that time, `cpu`, and how many
`connections` the server had meanwhile. Exits with 1 if a job was lost or invented.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import parse_qs, urlsplit

import uvloop

from bench.processes import connections
from bench.tally import AFTERMATH, MiscountError, Tally
from oncue import App


def port_of(url: str) -> int:
    """Of the server that is asked, which for SQS is the endpoint, and for Pub/Sub the emulator."""
    found = parse_qs(urlsplit(url).query)
    [place] = found.get("endpoint") or [f"//{host}" for host in found.get("emulator", ())] or [url]
    port = urlsplit(place).port
    assert port is not None
    return port


async def work_off(url: str, queues: int, jobs: int) -> dict[str, float]:
    tally = Tally(jobs)
    port = port_of(url)
    first = used = 0.0
    seen = 0

    async def work(number: int) -> None:
        nonlocal first, used, seen
        if not first:
            first, used = time.perf_counter(), time.process_time()
        if number == jobs // 2:
            seen = connections(port)
        tally.add(number)

    app = App(url)
    actors = [app.actor(f"work{index}")(work) for index in range(queues)]
    async with app:
        for index, actor in enumerate(actors):
            await actor.send_many(range(index, jobs, queues))
    began = time.perf_counter()
    async with app.working():
        await asyncio.to_thread(tally.wait)
        used = time.process_time() - used
        await asyncio.sleep(AFTERMATH)
    tally.check()
    return {"start": first - began, "seconds": tally.finished_at - first, "cpu": used, "connections": seen}


def main(argv: list[str]) -> int:
    url, queues, jobs = argv
    status = 0
    try:
        print(json.dumps(uvloop.run(work_off(url, int(queues), int(jobs)))))
    except* MiscountError as errors:
        print(f"{queues} queues: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
