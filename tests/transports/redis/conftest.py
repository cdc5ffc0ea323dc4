"""A server for each test, which it may stop, freeze, fill and lie to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def careful_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that has everything on disk before it answers."""
    server = RedisServer(tmp_path, fsync="always")
    server.start()
    yield server
    server.kill()
