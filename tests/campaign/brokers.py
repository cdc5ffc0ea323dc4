"""The servers that a campaign can be run on, each with its own way to cut connections."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from tests.brokers.redis_server import RedisServer


class Broker(Protocol):
    """A server whose data are on disk before it answers, and outlive `kill`."""

    once: ClassVar[bool]  # whether it settles and sends in one step, so that nothing may come twice
    folder: Path

    @property
    def url(self) -> str: ...
    def __init__(self, folder: Path) -> None: ...
    def start(self) -> None: ...  # returns when it takes commands
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def cut(self, chance: random.Random) -> None: ...  # connections of its clients


class Redis(RedisServer):
    once = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, fsync="always")

    def cut(self, chance: random.Random) -> None:
        self.command("CLIENT", "KILL", "TYPE", chance.choice(("pubsub", "normal")))


BROKERS: Mapping[str, type[Broker]] = {"redis": Redis}
