"""Kill runtimes, their workers, sidecars and the supervisor of `oncue up` at random moments, then count every message:
`python -m tests.campaign.up`.

Ends with 1 if a message did not end exactly once, in happy-end, or in error-end together with its dead letter.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from oncue import App
from tests.campaign.ledger import shown

from . import store
from .crew import STORE, Crew, Fault
from .ledger import UNBORN, End, faults, may_fail, results_faults

SENDERS = 2
BATCH = 25
MOST_WAITING = 400
PATIENCE = 150.0
"""Seconds in which all has to come to an end when nothing is sent any more: leases take one minute of them."""
ROUTES = (["slow"], ["crash", "slow"], ["wide"], ["wide", "crash"], ["slow", "wide"], [])


async def campaign(folder: Path, seconds: float, chance: random.Random, *, isolate: bool) -> set[tuple[int, int]]:
    """Run it; what was sent. Raise `Fault` for what is wrong beside the messages."""
    path = folder / STORE
    crew = Crew(folder, chance, isolate=isolate)
    sent: set[tuple[int, int]] = set()
    try:
        await crew.begin()
        store.write_down_ends(path)
        stop = asyncio.Event()
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for sender in range(SENDERS):
                group.create_task(send(path, sender, sent, stop))
            reported = started
            while time.monotonic() - started < seconds:
                await asyncio.sleep(chance.expovariate(1.5))
                await crew.deed()
                if time.monotonic() - reported >= 10:
                    await crew.look()
                    reported = time.monotonic()
                    report(path, sent, crew.deeds, reported - started)
            stop.set()
        await all_done(path, crew)
        report(path, sent, crew.deeds, time.monotonic() - started)
        await crew.end()
    finally:
        crew.kill()
    return sent


async def send(path: Path, sender: int, sent: set[tuple[int, int]], stop: asyncio.Event) -> None:
    """Send as long as few messages wait, and write down what is stored."""
    number = 0
    async with App(f"sqlite:///{path}") as app:
        while not stop.is_set():
            if sum(store.under_way(path).values()) > MOST_WAITING:
                await asyncio.sleep(0.1)
                continue
            numbers = range(number, number + BATCH)
            calls = [app.send("carry", note(sender, each), route=ROUTES[each % len(ROUTES)]) for each in numbers]
            await asyncio.gather(*calls)
            sent |= {(sender, each) for each in numbers}
            number += BATCH


def note(sender: int, number: int) -> dict[str, int]:
    return {"sender": sender, "number": number, "item": UNBORN}


async def all_done(path: Path, crew: Crew) -> None:
    """Wait until every queue but those of dead letters is empty."""
    limit = time.monotonic() + PATIENCE
    while left := store.under_way(path):
        if time.monotonic() > limit:
            raise Fault(f"messages are still under way after {PATIENCE:g} seconds: {left}\n{crew.last_words()}")
        await asyncio.sleep(0.2)


def report(path: Path, sent: set[tuple[int, int]], deeds: Counter[str], seconds: float) -> None:
    reached = store.counts(path)
    happy, error = reached.pop("asya-happy-end", 0), reached.pop("asya-error-end", 0)
    done = ", ".join(f"{name} {number}" for name, number in sorted(deeds.items()))
    line = f"{seconds:6.0f} s  sent {len(sent):>8,}  happy {happy:>8,}  error {error:>7,}  dead {sum(reached.values()):>7,}"
    print(f"{line}  ({done})", flush=True)


def wrong(folder: Path, sent: set[tuple[int, int]]) -> Iterator[str]:
    """What does not add up, when all has ended."""
    ends = store.ends(folder / STORE)
    yield from faults(sent, ends)
    yield from results_faults(ends, store.results(folder / STORE))


def summary(ends: Sequence[End]) -> str:
    """How it ended. Good ones that failed were in work at one kill too many."""
    places = Counter(end.place for end in ends)
    codes = Counter(end.code for end in ends if end.place == "error")
    failed = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
    good = sum(end.place == "error" and not may_fail(end.note[1]) for end in ends)
    ended = f"{places['happy']:,} happy, {places['error']:,} failed ({failed}; {good:,} of them good ones)"
    return f"{ended}, {places['dead']:,} dead letters"


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.up", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None, help="what to do when (default: another one each time)")
    parser.add_argument("--isolate", action="store_true", help="sidecars as processes, which are killed as well")
    parser.add_argument("--keep", action="store_true", help="leave the store and the log behind if something is wrong")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    how = " with --isolate" if options.isolate else ""
    print(f"campaign against oncue up{how} of {options.minutes:g} minutes with seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="oncue-campaign-"))
    found: list[str] = []
    try:
        sent = asyncio.run(campaign(folder, options.minutes * 60, random.Random(seed), isolate=options.isolate))
        found = shown(wrong(folder, sent))
        print(f"seed {seed}: {len(sent):,} sent, {summary(store.ends(folder / STORE))}")
    except* Fault as group:
        found = [str(each) for each in group.exceptions]
    finally:
        if options.keep and found:
            print(f"the store and the log are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    for each in found:
        print(each, file=sys.stderr)
    print(f"seed {seed}: {'WRONG' if found else 'all accounted for'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
