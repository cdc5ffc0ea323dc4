"""Kill, freeze and restart workers and senders at random moments, then count the messages: `python -m tests.campaign`.

Ends with 1 if a message was lost, doubled or invented. With `--up` and `--broker` it is another campaign.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from oncue.core.envelope import decode_envelope
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec, Subscription, Transport

from . import on_server
from .crew import Crew, crew_on
from .ledger import Ledger, shown
from .up import __main__ as up

QUEUES = ("asya-carry", "asya-hand_on")
LANDED = "asya-landed"
DEAD = "asya-carry-dlq"
PATIENCE = 120.0
"""Seconds in which all has to come to an end when nothing is sent any more."""


async def campaign(path: Path, seconds: float, chance: random.Random, *, loud: bool) -> Ledger:
    """Run it; what was counted."""
    ledger = Ledger()
    transport = await open_transport(f"sqlite:///{path}")
    await transport.declare(QueueSpec(name=LANDED))
    await transport.declare(QueueSpec(name=DEAD))
    async with asyncio.TaskGroup() as group:
        counting = [
            group.create_task(count(transport, LANDED, ledger.land)),
            group.create_task(count(transport, DEAD, ledger.die)),
        ]
        async with crew_on(path, ledger, chance, loud=loud) as crew:
            started = reported = time.monotonic()
            while time.monotonic() - started < seconds:
                await asyncio.sleep(chance.expovariate(4))
                await crew.deed()
                if time.monotonic() - reported >= 10:
                    reported = time.monotonic()
                    report(ledger, crew, reported - started)
            await crew.end_sending()
            await all_done(transport)
            report(ledger, crew, time.monotonic() - started)
        for task in counting:
            task.cancel()
    await transport.close()
    return ledger


async def count(transport: Transport, queue: str, add: Callable[[list[int]], None]) -> None:
    """Take whatever comes to a queue into the ledger."""

    async def work(subscription: Subscription) -> None:
        while True:
            lease = await subscription.receive()
            await lease.ack()
            add(msgspec.json.decode(decode_envelope(lease.message.body).payload, type=list[int]))

    async with transport.subscribe(queue, prefetch=100) as subscription, asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(work(subscription))


async def all_done(transport: Transport) -> None:
    """Wait until every queue is empty."""
    async with asyncio.timeout(PATIENCE):
        while True:
            depths = [await transport.depth(queue) for queue in (*QUEUES, LANDED, DEAD)]
            if not any(depth.ready or depth.leased or depth.delayed for depth in depths):
                return
            await asyncio.sleep(0.1)


def report(ledger: Ledger, crew: Crew, seconds: float) -> None:
    acknowledged, landed, dead = ledger.counts
    print(f"{seconds:6.0f} s  sent {acknowledged:>9,}  landed {landed:>9,}  dead {dead:>8,}  {crew.done}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if the messages do not add up."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--up" in words:
        words.remove("--up")
        return up.main(words)
    if "--broker" in words:
        return on_server.main(words)
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--up", action="store_true", help="against oncue up instead; see --up --help")
    parser.add_argument("--broker", help="on a server instead, such as redis; see --broker redis --help")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None, help="what to do when (default: another one each time)")
    parser.add_argument("--verbose", action="store_true", help="show what the processes say")
    options = parser.parse_args(words)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"campaign of {options.minutes:g} minutes with seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="oncue-campaign-") as folder:
        running = campaign(Path(folder) / "queues.db", options.minutes * 60, random.Random(seed), loud=options.verbose)
        try:
            ledger = asyncio.run(running)
        except TimeoutError:
            print(f"campaign: messages were still under way after {PATIENCE:g} seconds (seed {seed})", file=sys.stderr)
            return 1
    faults = shown(ledger.faults())
    for fault in faults:
        print(fault, file=sys.stderr)
    acknowledged, landed, dead = ledger.counts
    print(
        f"seed {seed}: {acknowledged:,} sent, {landed:,} landed, {dead:,} dead: {'WRONG' if faults else 'all accounted for'}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
