"""Where the contenders of one broker meet: a new place on its server for each, and a Python that has what a contender needs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.brokers.servers import Places
from bench.contest import SERVER
from bench.rounds import ROOT, Measure, measure
from bench.tally import PATIENCE, MiscountError

OURS = "bench.brokers.contenders.oncue"
CLASSIC = "bench.brokers.contenders.oncue_classic"
BARE = "bench.brokers.contenders.bare"
PEERS = tuple(
    f"bench.brokers.contenders.{name}"
    for name in ("celery", "dramatiq", "faststream", "google_client", "repid", "saq", "taskiq")
)
HOW = """To have the peers, make their environments once (they do not go into one, because they want different clients):
  for each in newer older; do python3 -m venv /tmp/peers-$each && /tmp/peers-$each/bin/pip install -r bench/peers/$each.txt; done
and then give them: --peers /tmp/peers-newer/bin/python /tmp/peers-older/bin/python"""
_ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def takes_part(contender: str, broker: str) -> bool:
    """Whether there is a way from the contender to the broker at all."""
    return broker in importlib.import_module(contender).PACKAGES


class BrokerGround:
    """Contenders whose packages no Python has are `absent`; of the others `versions` tells what they use."""

    def __init__(self, broker: str, places: Places, contenders: Sequence[str], pythons: Sequence[str]) -> None:
        self.broker = broker
        self.places = places
        self.versions: dict[str, Mapping[str, str]] = {}
        self.absent: dict[str, Sequence[str]] = {}
        self._pythons: dict[str, str] = {}
        wanted = {each: importlib.import_module(each).PACKAGES[broker] for each in contenders}
        everything = sorted({package for packages in wanted.values() for package in packages})
        for python in (sys.executable, *pythons):
            found = _versions(python, everything)
            for contender, packages in wanted.items():
                if contender not in self._pythons and found.keys() >= set(packages):
                    self._pythons[contender] = python
                    self.versions[contender] = {package: found[package] for package in packages}
        self.absent = {each: packages for each, packages in wanted.items() if each not in self._pythons}

    @property
    def contenders(self) -> Sequence[str]:
        return [*self._pythons]

    def modes(self, contender: str) -> Mapping[str, float]:
        modes: Mapping[str, float] = importlib.import_module(contender).MODES[self.broker]
        return modes

    def choices(self, contender: str) -> Sequence[str]:
        choices: Sequence[str] = getattr(importlib.import_module(contender), "CHOICES", {}).get(self.broker, ())
        return choices

    @contextmanager
    def fresh(self, contender: str) -> Iterator[Measure]:
        with self.places() as place:
            server = {SERVER: str(place.pid)}
            yield partial(measure, self._program(contender), contender, place.url, **server)

    def lone(self, contender: str, jobs: int, *choice: str) -> list[float]:
        """Milliseconds that each of so many lone messages took from the call that sends it to its handler's first line, in another
        process; raise `MiscountError` if one did not come."""
        modes = [*self.modes(contender)]
        mode = next((mode for mode in modes if mode.startswith("one by one")), modes[0])
        with self.places() as place:
            words = [*self._program(contender), contender, place.url]
            with subprocess.Popen(
                [*words, "receive", str(jobs), *choice], cwd=ROOT, stdout=subprocess.PIPE, text=True
            ) as receiver:
                assert receiver.stdout is not None
                try:
                    ready = receiver.stdout.readline() == "ready\n"
                    sender = subprocess.run(
                        [*words, "pace", str(jobs), mode], check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True
                    )
                    arrived = receiver.communicate(timeout=3 * PATIENCE)[0]
                finally:
                    receiver.kill()
        if not ready or sender.returncode or receiver.returncode:
            raise MiscountError(f"{contender} failed to send or to receive lone messages, see above")
        pairs = zip(_last(sender.stdout), _last(arrived), strict=True)
        return [(came - sent) / 1e6 for sent, came in pairs]

    def _program(self, contender: str) -> tuple[str, ...]:
        return (self._pythons[contender], "-m", "bench.brokers.contest")


def _last(printed: str) -> Any:
    return json.loads(printed.splitlines()[-1])


def _versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", _ASK, *packages], check=True, env=environ, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
