"""The campaign on Redis: workers, senders and the server itself are killed and frozen: `python -m tests.campaign.on_redis`.

The server has everything on disk before it answers. What has landed is counted when all is over, so that counting cannot
hide what came twice. Ends with 1 if a message was lost, doubled or invented.
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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from oncue.core.envelope import decode_envelope
from oncue.core.errors import ConnectionLostError
from oncue.core.message import Message
from oncue.transports import open_transport
from oncue.transports.base import Depth, QueueSpec, Transport
from tests.brokers.redis_server import RedisServer

from .crew import Crew
from .ledger import Ledger, shown

QUEUES = ("asya-carry", "asya-hand_on")
LANDED, DEAD = "asya-landed", "asya-carry-dlq"
PATIENCE = 120.0
"""Seconds in which all has to come to an end when nothing is sent any more."""


class RedisCrew(Crew):
    """Does to the server what servers suffer."""

    def __init__(self, server: RedisServer, ledger: Ledger, chance: random.Random, *, loud: bool) -> None:
        super().__init__(server.folder, ledger, chance, loud=loud)
        self._url = server.url
        self._server = server

    def _deeds_to_store(self) -> dict[str, tuple[float, Callable[[], Awaitable[None]]]]:
        return {
            "kill server": (0.5, self._kill_server),
            "freeze server": (0.5, self._freeze_server),
            "cut connections": (1, self._cut),
        }

    async def _kill_server(self) -> None:
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(self._chance.uniform(0, 0.5))
        await asyncio.to_thread(self._server.start)
        await self._new_senders()

    async def _freeze_server(self) -> None:
        self._server.freeze()
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        self._server.thaw()

    async def _cut(self) -> None:
        await asyncio.to_thread(
            self._server.command, "CLIENT", "KILL", "TYPE", self._chance.choice(("pubsub", "normal"))
        )
        await self._new_senders()

    async def _new_senders(self) -> None:
        """A sender ends when it cannot ask how much waits."""
        for place, hand in enumerate(self._senders):
            if hand.process.returncode is not None:
                await hand.ended()
                self._senders[place] = await self._sender()


async def campaign(server: RedisServer, seconds: float, chance: random.Random, *, loud: bool) -> Ledger:
    """Run it; what was counted."""
    ledger = Ledger()
    await asyncio.to_thread(server.start)
    transport = await open_transport(server.url)
    for name in (LANDED, DEAD):
        await transport.declare(QueueSpec(name=name))
    crew = RedisCrew(server, ledger, chance, loud=loud)
    try:
        await crew.begin()
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            await asyncio.sleep(chance.expovariate(8))
            await crew.deed()
        await crew.end_sending()
        await all_done(transport)
    finally:
        await crew.end()
    deeds = ", ".join(f"{name} {number}" for name, number in sorted(crew.deeds.items()))
    print(f"{time.monotonic() - started:.0f} s: {deeds}", flush=True)
    for queue, add in ((LANDED, ledger.land), (DEAD, ledger.die)):
        async for message in rest(transport, queue):
            add(msgspec.json.decode(decode_envelope(message.body).payload, type=list[int]))
    await transport.close()
    return ledger


async def rest(transport: Transport, queue: str) -> AsyncIterator[Message]:
    """Take all that is in a queue, when nobody does anything to the server any more."""
    async with transport.subscribe(queue, prefetch=1000) as subscription:
        while await transport.depth(queue) != Depth(0, 0, 0):
            leases = [await subscription.receive()]
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while len(leases) < 1000:
                        leases.append(await subscription.receive())
            await asyncio.gather(*(lease.ack() for lease in leases))
            for lease in leases:
                yield lease.message


async def all_done(transport: Transport) -> None:
    """Wait until nothing is under way any more."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                depths = [await transport.depth(queue) for queue in QUEUES]
                if not any(depth.ready or depth.leased or depth.delayed for depth in depths):
                    return
            except ConnectionLostError as error:
                print(error, file=sys.stderr)
            await asyncio.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.on_redis", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None, help="what to do when (default: another one each time)")
    parser.add_argument("--verbose", action="store_true", help="show what the processes say")
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"campaign of {options.minutes:g} minutes with seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="oncue-campaign-") as folder:
        server = RedisServer(Path(folder), fsync="always")
        try:
            running = campaign(server, options.minutes * 60, random.Random(seed), loud=options.verbose)
            ledger = asyncio.run(running)
        except TimeoutError:
            print(f"campaign: messages were under way after {PATIENCE:g} seconds (seed {seed})", file=sys.stderr)
            return 1
        finally:
            server.kill()
    faults = shown(ledger.faults())
    for fault in faults:
        print(fault, file=sys.stderr)
    sent, landed, dead = ledger.counts
    verdict = "WRONG" if faults else "all accounted for"
    print(f"seed {seed}: {sent:,} sent, {landed:,} landed, {dead:,} dead: {verdict}")
    return 1 if faults else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
