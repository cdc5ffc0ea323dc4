"""Jobs a second through Redis: `python -m bench.redis [--jobs N] [--rounds N] [--peers PYTHON]`, alone on the machine, please.

Each contender enqueues and drains no-op jobs in a process of its own, on a server of its own that writes to disk every second.
`--peers` names a Python that has Repid and Dramatiq, which need another version of the client than we do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS = ("OnCue", "bare client")
PEERS = ("Repid", "Dramatiq")
BATCH, SENDERS, CONCURRENCY = 1000, 500, 256


class Meter:
    """Seconds of the clock and of the processor; `print` tells the one who started this process."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        began, used = time.perf_counter(), time.process_time()
        yield
        self.parts[part] = (time.perf_counter() - began, time.process_time() - used)


async def at_once(jobs: int, send: Callable[[int], Coroutine[Any, Any, object]]) -> None:
    """Many coroutines that each await their sends one by one."""
    numbers = iter(range(jobs))

    async def sender() -> None:
        for number in numbers:
            await send(number)

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


async def oncue(url: str, jobs: int, meter: Meter) -> None:
    from oncue import App

    app = App(url)
    done: set[int] = set()
    complete = asyncio.Event()

    @app.actor(concurrency=CONCURRENCY)
    async def noop(number: int) -> None:
        done.add(number)
        if len(done) == jobs:
            complete.set()

    async with app:
        with meter.measure("send_many"):
            for first in range(0, jobs, BATCH):
                await noop.send_many(range(first, first + BATCH))
        with meter.measure("drain"):
            async with app.working():
                await complete.wait()
        with meter.measure("sends"):
            await at_once(jobs, noop.send)
        done.clear()
        complete.clear()
        async with app.working():
            await complete.wait()


async def bare(url: str, jobs: int, meter: Meter) -> None:
    """The same calls as a stream's consumer makes them, in batches and with nothing around them."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.xgroup_create("work", "workers", "0", mkstream=True)
    with meter.measure("send_many"):
        for first in range(0, jobs, BATCH):
            pipe = client.pipeline(transaction=False)
            for number in range(first, first + BATCH):
                pipe.xadd("work", {"body": b"%d" % number})
            await pipe.execute()
    with meter.measure("drain"):
        seen = 0
        while seen < jobs:
            [(_, entries)] = await client.xreadgroup("workers", "one", {"work": ">"}, count=CONCURRENCY)
            ids = [id for id, _ in entries]
            pipe = client.pipeline(transaction=True)
            pipe.xack("work", "workers", *ids)
            pipe.xdel("work", *ids)
            await pipe.execute()
            seen += len(ids)
    await client.aclose()


async def repid(url: str, jobs: int, meter: Meter) -> None:
    from repid import RedisServer, Repid, Router

    app = Repid(title="bench", version="1")
    app.servers.register_server(
        "default", RedisServer(url, batch_size=CONCURRENCY, claim_interval=30.0), is_default=True
    )
    router, done = Router(), set[int]()

    @router.actor(channel="work")
    async def noop(number: int) -> None:
        done.add(number)

    app.include_router(router)

    async def send(number: int) -> None:
        await app.send_message_json(channel="work", payload={"number": number}, headers={"topic": "noop"})

    async with app.servers.default.connection():
        with meter.measure("sends"):
            await at_once(jobs, send)
        with meter.measure("drain"):
            await app.run_worker(messages_limit=jobs, tasks_limit=CONCURRENCY)
    assert len(done) == jobs, f"{len(done)} of {jobs}"


def dramatiq(url: str, jobs: int, meter: Meter) -> None:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=url)
    dramatiq.set_broker(broker)
    done: set[int] = set()

    @dramatiq.actor(queue_name="work")
    def noop(number: int) -> None:
        done.add(number)

    with meter.measure("sends"):
        for number in range(jobs):
            noop.send(number)
    worker = dramatiq.Worker(broker, worker_threads=8)
    with meter.measure("drain"):
        worker.start()
        while len(done) < jobs:
            time.sleep(0.005)
    worker.stop()


CONTENDERS: dict[str, Callable[[str, int, Meter], Any]] = {
    "OnCue": oncue,
    "bare client": bare,
    "Repid": repid,
    "Dramatiq": dramatiq,
}


def contend(name: str, url: str, jobs: int) -> None:
    """One contender's part, in this process."""
    meter = Meter()
    contender = CONTENDERS[name]
    if asyncio.iscoroutinefunction(contender):
        import uvloop

        uvloop.run(contender(url, jobs, meter))
    else:
        contender(url, jobs, meter)
    print(json.dumps(meter.parts))


@contextmanager
def server() -> Iterator[str]:
    """A server with an empty folder; its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("bench.redis: neither redis-server nor valkey-server is installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--port",
            str(port),
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
        ]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            for _ in range(500):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.redis", description=__doc__)
    parser.add_argument(
        "--jobs", type=int, default=20_000, help="in each round, a multiple of 1000 (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)")
    parser.add_argument("--peers", help="a Python that has repid[redis], dramatiq[redis] and uvloop installed")
    parser.add_argument("--contend", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        contend(*options.contend, options.jobs)
        return 0
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for _ in range(options.rounds):
        for name in (*OURS, *(PEERS if options.peers else ())):
            python = options.peers if name in PEERS else sys.executable
            with server() as url:
                command = [python, "-m", "bench.redis", "--jobs", str(options.jobs), "--contend", name, url]
                said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            for part, measured in json.loads(said.splitlines()[-1]).items():
                found.setdefault(name, {}).setdefault(part, []).append(measured)
    print(f"{'':<12} {'part':<10} {'jobs/s':>8}  CPU-seconds of the client for 10,000")
    for name, parts in found.items():
        for part, measured in parts.items():
            rate = options.jobs / statistics.median(seconds for seconds, _ in measured)
            cpu = statistics.median(used for _, used in measured) * 10_000 / options.jobs
            print(f"{name:<12} {part:<10} {rate:>8,.0f}  {cpu:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
