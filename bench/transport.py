"""Measures the SQLite transport by itself: `python -m bench.transport`, alone on the machine, please.

Every part runs in processes of its own, counts each message, and makes the program fail if one was lost or invented.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from oncue.core.message import Message, Send
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Subscription, Transport

QUEUE = "bench"
IN_FLIGHT = 2000
SPEC = QueueSpec(name=QUEUE, lease=600.0)
_PADDING = b"." * 100


class MiscountError(Exception):
    """Messages were lost or came more than once."""


# The parts; each is one process, and prints what it found as a line of JSON.


async def stream(url: str, messages: int) -> dict[str, float]:
    """Messages go through send, receive and ack at the same time, one per call, with many calls in flight."""
    transport = await _opened(url)
    tally = Tally(messages)
    started = time.perf_counter()
    async with transport.subscribe(QUEUE, prefetch=IN_FLIGHT) as subscription, asyncio.TaskGroup() as group:
        group.create_task(_fill(transport, messages))
        group.create_task(_drain(subscription, tally))
    elapsed = time.perf_counter() - started
    await transport.close()
    tally.check()
    return {"rate": messages / elapsed, "cpu": time.process_time() / messages * 1e6}


async def backlog(url: str, messages: int) -> dict[str, float]:
    """All messages are sent before the first is received."""
    transport = await _opened(url)
    tally = Tally(messages)
    await asyncio.sleep(0)
    resident = [_resident()]
    used = [time.process_time()]
    sending = await _seconds(_fill(transport, messages, resident))
    used.append(time.process_time())
    asking = sorted([await _seconds(_expect_depth(transport, messages)) for _ in range(21)])
    resident.append(_resident())
    used.append(time.process_time())
    async with transport.subscribe(QUEUE, prefetch=IN_FLIGHT) as subscription:
        draining = await _seconds(_drain(subscription, tally, resident))
    used.append(time.process_time())
    await _expect_depth(transport, 0)
    await transport.close()
    tally.check()
    return {
        "enqueue": messages / sending,
        "depth": asking[len(asking) // 2] * 1e3,
        "drain": messages / draining,
        "enqueue_cpu": (used[1] - used[0]) / messages * 1e6,
        "drain_cpu": (used[3] - used[2]) / messages * 1e6,
        "resident": max(resident) / 2**20,
    }


async def waiting(url: str, messages: int) -> dict[str, float]:
    """The receiving end of `lone`: says after each message how long it was under way."""
    transport = await _opened(url)
    async with transport.subscribe(QUEUE, prefetch=1) as subscription:
        print("ready", flush=True)
        for _ in range(messages):
            lease = await subscription.receive()
            arrived = time.monotonic_ns()
            await lease.ack()
            print(lease.message.id, (arrived - int(lease.message.body)) / 1e6, flush=True)
    await transport.close()
    return {}


async def lone(url: str, messages: int) -> dict[str, float]:
    """One message at a time on an idle queue, to an idle process."""
    receiver = await asyncio.create_subprocess_exec(*_command("waiting", url, messages), stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    await receiver.stdout.readline()
    transport = await _opened(url)
    took = []
    for number in range(messages):
        await asyncio.sleep(0.03)
        body = str(time.monotonic_ns()).encode()
        await transport.send(Send(QUEUE, Message(body, str(number))))
        id, milliseconds = (await receiver.stdout.readline()).split()
        if id != str(number).encode():
            raise MiscountError(f"message {number} was sent and {id.decode()} came")
        took.append(float(milliseconds))
    await receiver.communicate()
    await _expect_depth(transport, 0)
    await transport.close()
    return {"median": statistics.median(took), "worst": max(took), "p95": sorted(took)[len(took) * 95 // 100]}


async def idle(url: str, seconds: int) -> dict[str, float]:
    """A subscription on which nothing comes."""
    transport = await _opened(url)
    async with transport.subscribe(QUEUE, prefetch=100) as subscription:
        receiving = asyncio.ensure_future(subscription.receive())
        await asyncio.sleep(2)  # the store settles after it was opened
        started = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - started
        receiving.cancel()
    await transport.close()
    return {"core": used / seconds * 100, "resident": _resident() / 2**20}


PARTS: dict[str, Callable[[str, int], Awaitable[dict[str, float]]]] = {
    part.__name__: part for part in (stream, backlog, waiting, lone, idle)
}


class Tally:
    """Which messages have come."""

    def __init__(self, messages: int) -> None:
        self._came = bytearray(messages)
        self.missing = messages

    def add(self, message: Message) -> None:
        number = int(message.id)
        if number >= len(self._came) or self._came[number] or not message.body.endswith(_PADDING):
            raise MiscountError(f"message {number} came again, or was never sent")
        self._came[number] = 1
        self.missing -= 1

    def check(self) -> None:
        if self.missing:
            raise MiscountError(f"{self.missing} of {len(self._came)} messages were lost")


async def _opened(url: str) -> Transport:
    transport = await open_transport(url)
    await transport.declare(SPEC)
    return transport


async def _fill(transport: Transport, messages: int, resident: list[int] | None = None) -> None:
    numbers = iter(range(messages))

    async def send() -> None:
        for number in numbers:
            await transport.send(Send(QUEUE, Message(b"%d%s" % (number, _PADDING), str(number))))
            if resident is not None and not number % 50_000:
                resident.append(_resident())

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(send())


async def _drain(subscription: Subscription, tally: Tally, resident: list[int] | None = None) -> None:
    wanted = iter(range(tally.missing))

    async def receive() -> None:
        for number in wanted:
            lease = await subscription.receive()
            tally.add(lease.message)
            await lease.ack()
            if resident is not None and not number % 50_000:
                resident.append(_resident())

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(receive())


async def _expect_depth(transport: Transport, messages: int) -> None:
    depth = await transport.depth(QUEUE)
    if (depth.ready, depth.leased, depth.delayed) != (messages, 0, 0):
        raise MiscountError(f"{messages} messages should be there, and the store has {depth}")


async def _seconds(work: Awaitable[None]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _resident() -> int:
    """Bytes of memory in use by this process, where the system tells; otherwise the most that it ever used."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


# Putting the parts together


def _command(part: str, url: str, number: int) -> list[str]:
    return [sys.executable, "-m", "bench.transport", "--part", part, "--url", url, "--messages", str(number)]


def measure(part: str, number: int, folder: Path | None = None) -> dict[str, float]:
    """One part with `number` messages (or seconds) in a process of its own, on a new file; raise `MiscountError`."""
    with tempfile.TemporaryDirectory(prefix="oncue-bench-", dir=folder) as place:
        command = _command(part, f"sqlite:///{place}/bench.db", number)
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise MiscountError(f"{part} failed: {done.stdout.strip() or 'see above'}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _spread(values: Sequence[float]) -> str:
    return f"median {statistics.median(values):>9,.0f}   lowest {min(values):>9,.0f}   highest {max(values):>9,.0f}"


def report(options: argparse.Namespace) -> None:
    """Measure everything and print it."""
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, synchronous=FULL"
    )
    streams = [measure("stream", options.messages, options.folder) for _ in range(options.rounds)]
    print(
        f"\nsend, receive, ack at once, {options.messages:,} messages, {IN_FLIGHT} in flight, {options.rounds} rounds"
    )
    print(f"  messages a second    {_spread([each['rate'] for each in streams])}")
    alone = measure("lone", options.lone, options.folder)
    print(f"\na lone message on an idle queue, to its receipt in another process, {options.lone} times")
    print("  milliseconds         " + "   ".join(f"{name} {alone[name]:.2f}" for name in ("median", "p95", "worst")))
    resting = measure("idle", options.idle, options.folder)
    print(f"\nan idle subscription, {options.idle} seconds")
    print(f"  of one core          {resting['core']:.2f} %   resident {resting['resident']:.1f} MB")
    if options.backlog:
        _report_backlog(options)


def _report_backlog(options: argparse.Namespace) -> None:
    small, large = options.backlog // 100, options.backlog
    few = [measure("backlog", small, options.folder) for _ in range(options.rounds)]
    many = measure("backlog", large, options.folder)
    usual = {name: statistics.median([each[name] for each in few]) for name in many}
    print(
        f"\nall sent before the first is received: {small:,} ({options.rounds} rounds, medians) and {large:,} messages"
    )
    for name in ("enqueue", "drain"):
        share = many[name] / usual[name] * 100
        print(f"  {name + ' a second':<20} {usual[name]:>9,.0f} {many[name]:>11,.0f}   {share:.0f} %")
    for name in ("enqueue", "drain"):
        cpu = f"{name}_cpu"
        print(f"  {name + ', µs of CPU':<20} {usual[cpu]:>9,.1f} {many[cpu]:>11,.1f}")
    print(f"  depth milliseconds   {usual['depth']:>9,.2f} {many['depth']:>11,.2f}")
    print(f"  most resident, MB    {usual['resident']:>9,.1f} {many['resident']:>11,.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if a message was lost or invented."""
    parser = argparse.ArgumentParser(prog="python -m bench.transport", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="in each round (default: %(default)s)")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="0 leaves this part out (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the parts that are quick (default: %(default)s)")
    parser.add_argument("--lone", type=int, default=200, help="how many lone messages to time (default: %(default)s)")
    parser.add_argument(
        "--idle", type=int, default=10, help="seconds to watch an idle subscription (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    failed = False
    try:
        if options.part:
            figures: Any = asyncio.run(PARTS[options.part](options.url, options.messages))
            print(json.dumps(figures) if figures else "", end="")
        else:
            report(options)
    except* MiscountError as group:
        print(f"bench: {group.exceptions[0]}", file=sys.stderr)
        failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
