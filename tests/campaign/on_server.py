"""The campaign on a broker: workers, senders and the server itself are killed and frozen, and connections are cut.

`python -m tests.campaign --broker redis`. The server has everything on disk before it answers. What has landed is counted
when all is over, so that counting cannot hide what came twice. Ends with 1 if a message was lost or invented, or doubled by
a broker that can settle and send in one step.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from oncue.core.envelope import decode_envelope
from oncue.core.errors import ConnectionLostError, LeaseLostError, TransportError
from oncue.core.message import Message
from oncue.transports import open_transport
from oncue.transports.base import Depth, Lease, QueueSpec, Transport

from .brokers import BROKERS, FORGETFUL, Broker
from .crew import Crew
from .ledger import Ledger, shown

QUEUES = ("asya-carry", "asya-hand_on")
LANDED, DEAD = "asya-landed", "asya-carry-dlq"
QUIET_THEN = 5.0
"""Seconds without a dead letter, once nothing lands any more."""
UNKNOWN = Depth(None, None, None)
PATIENCE = 180.0
"""Seconds in which all has to come to an end when nothing is sent any more."""


class ServerCrew(Crew):
    """Does to the server what servers suffer."""

    def __init__(self, broker: Broker, ledger: Ledger, chance: random.Random, *, loud: bool) -> None:
        super().__init__(broker.folder, ledger, chance, loud=loud)
        self._url = broker.url
        self._broker = broker

    def _deeds_to_store(self) -> dict[str, tuple[float, Callable[[], Awaitable[None]]]]:
        killing = {} if isinstance(self._broker, FORGETFUL) else {"kill server": (0.5, self._kill_server)}
        return {
            **killing,
            "freeze server": (0.5, self._freeze_server),
            "cut connections": (1, self._cut),
        }

    async def _kill_server(self) -> None:
        await asyncio.to_thread(self._broker.kill)
        await asyncio.sleep(self._chance.uniform(0, 0.5))
        await asyncio.to_thread(self._broker.start)
        await self._new_senders()

    async def _freeze_server(self) -> None:
        self._broker.freeze()
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        self._broker.thaw()

    async def _cut(self) -> None:
        await asyncio.to_thread(self._broker.cut, self._chance)
        await self._new_senders()

    async def _new_senders(self) -> None:
        """A sender ends when it cannot ask how much waits."""
        for place, hand in enumerate(self._senders):
            if hand.process.returncode is not None:
                await hand.ended()
                self._senders[place] = await self._sender()


async def campaign(broker: Broker, options: argparse.Namespace, chance: random.Random, ledger: Ledger) -> None:
    """Run it, and count into `ledger`."""
    await asyncio.to_thread(broker.start)
    transport = await open_transport(broker.url)
    for name in (LANDED, DEAD):
        await transport.declare(QueueSpec(name=name))
    crew = ServerCrew(broker, ledger, chance, loud=options.verbose)
    try:
        await crew.begin()
        started = reported = time.monotonic()
        while time.monotonic() - started < 60 * options.minutes or crew.killed < options.kills:
            await asyncio.sleep(chance.expovariate(8))
            await crew.deed()
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                print(f"{reported - started:.0f} s: {crew.done}", flush=True)
        await crew.end_sending()
        if await transport.depth(LANDED) == UNKNOWN:
            for queue, add in ((LANDED, ledger.land), (DEAD, ledger.die)):
                await taken(transport, queue, add, broker.quiet if queue == LANDED else QUIET_THEN)
        else:
            await all_done(transport, broker.quiet)
    finally:
        await crew.end()
    print(f"{time.monotonic() - started:.0f} s: {crew.done}", flush=True)
    for queue, add in ((LANDED, ledger.land), (DEAD, ledger.die)):
        async for message in rest(transport, queue):
            add(note_of(message))
    await transport.close()


async def rest(transport: Transport, queue: str) -> AsyncIterator[Message]:
    """Take all that is in a queue, when nobody does anything to the server any more."""
    async with transport.subscribe(queue, prefetch=1000) as subscription:
        while True:
            leases = []
            with suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    while len(leases) < 1000:
                        leases.append(await subscription.receive())
            if not leases:
                return
            await asyncio.gather(*(lease.ack() for lease in leases))
            for lease in leases:
                yield lease.message


async def all_done(transport: Transport, quiet: float) -> None:
    """Wait until nothing is under way any more: nothing waits in a queue, and nothing has changed for `quiet` seconds."""
    before, since = None, time.monotonic()
    async with asyncio.timeout(PATIENCE + quiet):
        while True:
            try:
                depths = [await transport.depth(queue) for queue in (*QUEUES, LANDED, DEAD)]
            except TransportError as error:
                print(error, file=sys.stderr)
                depths = None
            if depths != before or depths is None:
                before, since = depths, time.monotonic()
            elif time.monotonic() - since >= quiet and not any(map(busy, depths[: len(QUEUES)])):
                return
            await asyncio.sleep(0.1)


async def taken(transport: Transport, queue: str, add: Callable[[list[int]], None], quiet: float) -> None:
    """Where nothing can be counted: take what has landed until none came for `quiet` seconds, however often that takes."""
    async with asyncio.timeout(4 * PATIENCE), transport.subscribe(queue, prefetch=1000) as subscription:
        last = time.monotonic()
        while time.monotonic() - last < quiet:
            leases: list[Lease] = []
            with suppress(TimeoutError, ConnectionLostError):
                async with asyncio.timeout(1.0):
                    while len(leases) < 1000:
                        leases.append(await subscription.receive())
            if leases:
                last = time.monotonic()
            done = await asyncio.gather(*(lease.ack() for lease in leases), return_exceptions=True)
            for lease, error in zip(leases, done, strict=True):
                if not isinstance(error, LeaseLostError):  # then it comes again
                    add(note_of(lease.message))


def note_of(message: Message) -> list[int]:
    """What one of the campaign's messages says."""
    return msgspec.json.decode(decode_envelope(message.body).payload, type=list[int])


def busy(depth: Depth) -> bool:
    """Whether there is something in it that one knows of."""
    return bool(depth.ready or depth.leased or depth.delayed)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--broker", choices=sorted(BROKERS), required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--kills", type=int, default=0, help="go on until so many workers were killed")
    parser.add_argument("--seed", type=int, default=None, help="what to do when (default: another one each time)")
    parser.add_argument("--verbose", action="store_true", help="show what the processes say")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"campaign of {options.minutes:g} minutes on {options.broker} with seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kind = BROKERS[options.broker]
    ledger = Ledger(once=kind.once)
    with tempfile.TemporaryDirectory(prefix="oncue-campaign-") as folder:
        broker = kind(Path(folder))
        try:
            asyncio.run(campaign(broker, options, random.Random(seed), ledger))
        except TimeoutError:
            print(
                f"campaign: messages were under way after {PATIENCE + kind.quiet:g} seconds (seed {seed})",
                file=sys.stderr,
            )
            return 1
        finally:
            broker.close()
    faults = shown(ledger.faults())
    for fault in faults:
        print(fault, file=sys.stderr)
    sent, landed, dead = ledger.counts
    twice = f", {ledger.twice:,} of them more than once" if ledger.twice else ""
    verdict = "WRONG" if faults else "all accounted for"
    print(f"seed {seed}: {sent:,} sent, {landed:,} landed, {dead:,} dead{twice}: {verdict}")
    return 1 if faults else 0
