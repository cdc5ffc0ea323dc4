"""Many queues in one process: `python -m bench.brokers.queues URL QUEUES JOBS`.

Sends the jobs evenly to so many actors of one app, and then works them off as `oncue run` does, each queue by a consumer of its own
that handles 100 messages at a time, as it does by itself. No job is done before each queue has had one handed out: else those
whose consumers come first would be empty when the last ones begin. The first half of the jobs warms up. With fewer than 200 jobs
a queue, what is measured had been fetched before that.

Prints a line of JSON: the seconds of `start`, from before the consumers start until each queue's first job is handed out, the
`jobs` and the `seconds` of the second half, those of the processor in that time, `cpu`, and how many `connections` the server had
meanwhile. Exits with 1 if a job was lost or invented.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import parse_qs, urlsplit

from bench.brokers.contest import batches
from bench.processes import connections
from bench.tally import AFTERMATH, MiscountError, Tally
from oncue import App
from oncue.main_loop import run_in_loop


def port_of(url: str) -> int:
    """Of the server that is asked, which for SQS is the endpoint, and for Pub/Sub the emulator."""
    found = parse_qs(urlsplit(url).query)
    [place] = found.get("endpoint") or [f"//{host}" for host in found.get("emulator", ())] or [url]
    port = urlsplit(place).port
    assert port is not None
    return port


class Watch:
    """Lets the handlers wait for each other's queues, and looks at the clock when half of the jobs are done."""

    def __init__(self, url: str, queues: int, jobs: int) -> None:
        self.tally = Tally(jobs)
        self.began = time.perf_counter()
        self.reached_at = self.warm_at = self.used = 0.0
        self.connections = 0
        self._port = port_of(url)
        self._missing = set(range(queues))
        self._queues = queues
        self._all_reached = asyncio.Event()
        self._left = self._cold = jobs - jobs // 2

    async def work(self, number: int) -> None:
        """A job's handler."""
        if not self._all_reached.is_set():
            self._missing.discard(number % self._queues)
            if not self._missing:
                self.reached_at = time.perf_counter()
                self._all_reached.set()
            await self._all_reached.wait()
        self.tally.add(number)
        if self._cold:
            self._cold -= 1
            if not self._cold:
                self.connections = connections(self._port)
                self.warm_at, self.used = time.perf_counter(), time.process_time()

    def measured(self) -> dict[str, float]:
        """Once all is done."""
        self.tally.check()
        return {
            "start": self.reached_at - self.began,
            "jobs": self.tally.jobs - self._left,
            "seconds": self.tally.finished_at - self.warm_at,
            "cpu": self.used,
            "connections": self.connections,
        }


async def work_off(url: str, queues: int, jobs: int) -> dict[str, float]:
    app = App(url)
    watch = Watch(url, queues, jobs)
    actors = [app.actor(f"work{index}")(watch.work) for index in range(queues)]
    async with app:
        for index, actor in enumerate(actors):
            numbers = range(index, jobs, queues)
            for batch in batches(len(numbers)):
                await actor.send_many(numbers[batch.start : batch.stop])
    watch.began = time.perf_counter()
    async with app.working():
        await asyncio.to_thread(watch.tally.wait)
        watch.used = time.process_time() - watch.used
        await asyncio.sleep(AFTERMATH)
    return watch.measured()


def main(argv: list[str]) -> int:
    url, queues, jobs = argv
    status = 0
    try:
        print(json.dumps(run_in_loop(work_off(url, int(queues), int(jobs)))))
    except* MiscountError as errors:
        print(f"{queues} queues: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
