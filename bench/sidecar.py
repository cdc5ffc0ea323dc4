"""What a sidecar costs: `python -m bench.sidecar`, alone on the machine, please. Takes about a minute.

The time that a hop through sidecar and socket adds to a handler's call against the same function in this process, at a hundred
messages a second; the throughput of `oncue sidecar` and `runtime.py` with a handler that does nothing, on SQLite or where `--url`
says; how soon a sidecar is ready, and its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import processor_seconds, resident
from bench.tally import PATIENCE, MiscountError
from oncue import App
from oncue.core.envelope import Envelope
from oncue.core.message import Message, Send
from oncue.events import Event, Events, MessageDone
from oncue.health import Health
from oncue.pump import Stop
from oncue.sidecar.actor import ActorSettings, SidecarActor
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Transport

RUNTIME = Path(__file__).parents[1] / "src/oncue/runtime.py"
HANDLERS = "def nothing(payload):\n    return payload\n"
SOCKET = "asya-runtime.sock"
NAME = "nothing"
QUEUE, END = f"asya-{NAME}", "asya-happy-end"
TAKERS = 200
GOALS = {"median": 0.3, "p99": 1.0, "throughput": 10_000, "ready": 0.4, "memory": 40.0}


class Times(NamedTuple):
    """Milliseconds."""

    median: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        found = sorted(seconds)
        return cls(1000 * statistics.median(found), 1000 * found[int(len(found) * 0.99)])


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="oncue-bench-") as name:
        (Path(name) / "handlers.py").write_text(HANDLERS, encoding="utf-8")
        yield Path(name)


class Passed(NamedTuple):
    """Messages a second through all actors; the first sidecar's memory after that (MB), and the microseconds of the processor that
    each message cost it."""

    rate: float
    memory: float
    used: float


def surroundings(place: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONCUE_", "ASYA_"))}
    return {
        **kept,
        "ONCUE_URL": f"sqlite:///{place}/jobs.db",
        "ONCUE_SOCKET_DIR": str(place),
        "ONCUE_HANDLER": "handlers.nothing",
        "ONCUE_ACTOR_NAME": NAME,
        "ONCUE_METRICS": "127.0.0.1:0",
        "PYTHONPATH": str(place),
        **more,
    }


@contextmanager
def runtime(place: Path) -> Iterator[int]:
    """A runtime that is ready; its process."""
    words = [sys.executable, str(RUNTIME)]
    with subprocess.Popen(words, env=surroundings(place), stderr=subprocess.DEVNULL) as child:
        try:
            while not (place / "runtime-ready").exists():
                time.sleep(0.005)
            yield child.pid
        finally:
            child.terminate()


@contextmanager
def sidecar(place: Path, **more: str) -> Iterator[tuple[float, int]]:
    """A sidecar that takes messages; the seconds until it did, and its process."""
    began = time.perf_counter()
    words = [sys.executable, "-P", "-m", "oncue", "sidecar"]
    with subprocess.Popen(words, env=surroundings(place, **more), stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        try:
            while json.loads(child.stderr.readline())["message"] != "pump.started":
                continue
            yield time.perf_counter() - began, child.pid
        finally:
            child.terminate()
            child.stderr.read()


def message(number: int, actors: Sequence[str] = (NAME,)) -> Send:
    envelope = Envelope.new(actors, b'{"n":1}', id=f"m{number}")
    return Send(f"asya-{actors[0]}", Message(envelope.encode(), envelope.id))


def latency(count: int) -> tuple[Times, Times]:
    """How long handlers' calls take in this process, and through the socket, a hundred a second."""
    with folder() as place, runtime(place):
        return asyncio.run(_in_process(place, count)), asyncio.run(_through_socket(place, count))


async def _in_process(place: Path, count: int) -> Times:
    app = App(f"sqlite:///{place}/app.db")

    @app.actor(concurrency=1)
    async def nothing(payload: Any) -> Any:
        return payload

    transport = await open_transport(f"sqlite:///{place}/app.db")
    try:
        async with app.connected(transport):
            return await _times(app.events, app.work, transport, count)
    finally:
        await transport.close()


async def _through_socket(place: Path, count: int) -> Times:
    transport = await open_transport(f"sqlite:///{place}/jobs.db")
    events = Events()
    actor = SidecarActor(
        ActorSettings(name="nothing", socket=place / SOCKET), transport, events=events, health=Health()
    )
    try:
        return await _times(events, actor.run, transport, count)
    finally:
        await transport.close()


async def _times(events: Events, run: Callable[[Stop], Any], transport: Transport, count: int) -> Times:
    """What the calls take that `events` tell of, while messages are sent evenly."""
    found: list[float] = []
    news = asyncio.Event()

    def hear(event: Event) -> None:
        if isinstance(event, MessageDone):
            found.append(event.seconds)
            news.set()

    events.subscribe(hear)
    for queue in (QUEUE, END):
        await transport.declare(QueueSpec(name=queue))
    stop = Stop()
    working = asyncio.create_task(run(stop))
    loop = asyncio.get_running_loop()
    start = loop.time() + 0.5
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / 100 - loop.time()))
        await transport.send(message(number))
    while len(found) < count:
        news.clear()
        await news.wait()
    stop.gently(5.0)
    await working
    return Times.of(found[min(20, count // 2) :])


def throughput(count: int, url: str | None = None, *, actors: int = 1) -> Passed:
    """Send messages along a route of so many actors, each a sidecar with its runtime, and see all of them at its end; raise
    `MiscountError` if one is missing or came twice. Where the broker does not tell how many have arrived they are taken as they
    come, in the same time."""
    names = [NAME, *(f"{NAME}{number}" for number in range(1, actors))]
    with ExitStack() as stack:
        places = {name: stack.enter_context(folder()) for name in names}
        url = url or f"sqlite:///{places[NAME]}/jobs.db"
        for place in places.values():
            stack.enter_context(runtime(place))
        asyncio.run(_fill(url, names, count))
        pid = 0
        for name, place in reversed(places.items()):
            _, pid = stack.enter_context(sidecar(place, ONCUE_URL=url, ONCUE_ACTOR_NAME=name))
        began, before = time.perf_counter(), processor_seconds(pid)
        counted = asyncio.run(_arrived(url, count))
        if not counted:
            asyncio.run(_check(url, count))
        took = time.perf_counter() - began
        passed = Passed(count / took, resident(pid), (processor_seconds(pid) - before) / count * 1e6)
        if counted:
            asyncio.run(_check(url, count))
    return passed


async def _fill(url: str, names: Sequence[str], count: int) -> None:
    transport = await open_transport(url)
    for queue in (*(f"asya-{name}" for name in names), END):
        await transport.declare(QueueSpec(name=queue))
    for start in range(0, count, 1000):
        await transport.send(*(message(number, names) for number in range(start, min(count, start + 1000))))
    await transport.close()


async def _arrived(url: str, count: int) -> bool:
    """Return when as many messages as were sent are at the end of the route; False at once if nobody can tell."""
    transport = await open_transport(url)
    ready: int | None = 0
    until = time.monotonic() + PATIENCE
    while ready is not None and ready < count:
        await asyncio.sleep(0.02)
        before, ready = ready, (await transport.depth(END)).ready
        if ready != before:
            until = time.monotonic() + PATIENCE
        if time.monotonic() > until:
            raise MiscountError(f"of {count} messages {ready} came through the sidecars")
    await transport.close()
    return ready is not None


async def _check(url: str, count: int) -> None:
    """Each message is at the end, once."""
    transport = await open_transport(url)
    wanted, found = iter(range(count)), []
    async with transport.subscribe(END, prefetch=2 * TAKERS) as subscription:

        async def take() -> None:
            for _ in wanted:
                async with asyncio.timeout(PATIENCE):
                    lease = await subscription.receive()
                found.append(lease.message.id)
                await lease.ack()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(TAKERS):
                    group.create_task(take())
        except* TimeoutError:
            raise MiscountError(f"of {count} messages {len(found)} came through the sidecars") from None
    left = (await transport.depth(END)).ready
    await transport.close()
    if left or sorted(found) != sorted(f"m{number}" for number in range(count)):
        raise MiscountError(f"of {count} messages {len(set(found))} came through the sidecars, {left} too often")


def start(rounds: int) -> tuple[float, float]:
    """Seconds until a sidecar takes messages, and its memory then (MB); medians."""
    found = []
    for _ in range(rounds):
        with folder() as place, runtime(place), sidecar(place) as (seconds, pid):
            found.append((seconds, resident(pid)))
    return statistics.median(each[0] for each in found), statistics.median(each[1] for each in found)


def main() -> int:
    """Measure and print; exit with 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.sidecar", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small round that only shows that everything works")
    parser.add_argument("--url", help="where the queues for the throughput are (default: a new SQLite file)")
    options = parser.parse_args()
    quick = options.quick
    here, there = latency(50 if quick else 2000)
    added = Times(there.median - here.median, there.p99 - here.p99)
    print(f"a call in this process: median {here.median:.3f} ms, p99 {here.p99:.3f} ms")
    print(f"through the socket: median {there.median:.3f} ms, p99 {there.p99:.3f} ms")
    print(f"added: median {added.median:.3f} ms, p99 {added.p99:.3f} ms")
    found = [throughput(1000 if quick else 20_000, options.url) for _ in range(1 if quick else 5)]
    best = max(found)
    shown = ", ".join(f"{each.rate:.0f}" for each in found)
    print(
        f"throughput: {shown} messages a second; at best {best.used:.0f} µs of the sidecar's processor each, "
        f"{best.memory:.1f} MB"
    )
    ready, at_start = start(1 if quick else 7)
    print(f"ready after {ready:.2f} s, {at_start:.1f} MB resident")
    good = added.median <= GOALS["median"] and added.p99 <= GOALS["p99"] and best.rate >= GOALS["throughput"]
    good = good and ready <= GOALS["ready"] and at_start <= GOALS["memory"]
    print("all goals met" if good else f"a goal was missed: {GOALS}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
