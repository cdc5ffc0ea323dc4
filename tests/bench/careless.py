"""A contender of `bench.brokers` that is fast because it does one job twice, instead of another or besides; for `test_brokers`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.brokers.contest import Calls

NAME = "Careless"
PACKAGES = {"redis": ()}
MODES = {"redis": {"one by one": 1.0}}
JOBS = 300


@contextmanager
def sender(_url: str, _mode: str) -> Iterator[Calls]:
    yield Calls(lambda _: None)


@contextmanager
def worker(_url: str, add: Callable[[int], None]) -> Iterator[None]:
    for number in range(JOBS - (os.environ["CARELESS"] == "instead")):
        add(number)
    add(0)
    yield
