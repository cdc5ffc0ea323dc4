"""Each extra brings all that its own transport imports, and who has none of them is told which one to install."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement

# What the extra is for, and a URL that cannot be opened without it. The one for NATS is for keys alone.
EXTRAS = {
    "redis": ("oncue.transports.redis", "redis://127.0.0.1:1"),
    "rabbitmq": ("oncue.transports.rabbitmq", "amqp://127.0.0.1:1"),
    "sqs": ("oncue.transports.sqs", "sqs://eu-west-1"),
    "s3": ("oncue.results.s3", None),
    "nats": ("oncue.transports.nats", None),
    "kafka": ("oncue.transports.kafka", "kafka://127.0.0.1:1"),
    "pubsub": ("oncue.transports.pubsub", "pubsub://my-project?emulator=127.0.0.1:1"),
}

NARROWED = """
import asyncio, importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({absent!r}))  # None: there is no such module
"""

IMPORTED = """
module = importlib.import_module({module!r})
for found in pkgutil.walk_packages(getattr(module, "__path__", ()), module.__name__ + "."):
    importlib.import_module(found.name)
print("all there")
"""

OPENED = """
from oncue.transports import open_transport
try:
    asyncio.run(open_transport({url!r}))
except Exception as error:
    print(type(error).__name__, error)
"""


def named(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def closure(*extras: str) -> set[str]:
    """The distributions that are installed with oncue and these extras of it."""
    found: set[str] = set()
    waiting = [Requirement(f"oncue[{','.join(extras)}]" if extras else "oncue")]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        key = (named(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            needed = requires(wanted.name) or []
        except PackageNotFoundError:
            continue  # for another machine
        found.add(key[0])
        for each in map(Requirement, needed):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(each)
    return found


def narrowed(*extras: str) -> str:
    """The beginning of a program in which nothing else can be imported than what oncue and these extras need."""
    there = closure(*extras)
    absent = {
        module
        for module, distributions in packages_distributions().items()
        if there.isdisjoint(map(named, distributions))
    }
    return NARROWED.format(absent=absent)


def said_by(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_alone_brings_all_that_is_imported(extra: str) -> None:
    module, _ = EXTRAS[extra]
    assert said_by(narrowed(extra) + IMPORTED.format(module=module)) == "all there"


@pytest.mark.parametrize("extra", [extra for extra, (_, url) in EXTRAS.items() if url])
def test_who_lacks_the_extra_is_told_the_line_that_installs_it(extra: str) -> None:
    _, url = EXTRAS[extra]
    scheme = str(url).partition(":")[0]
    assert said_by(narrowed() + OPENED.format(url=url)) == (
        f"MissingExtraError {scheme}: needs an extra: pip install 'oncue[{extra}]'"
    )
