"""The suite on the Redis transport, with a server that can be restarted, and with one that is used by others as well."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers.redis_server import RedisServer, redis_server, redis_url  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.testing.conformance import Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestRedis(TransportConformance):
    @pytest.fixture(autouse=True)
    def choose_tag(self, redis_url: str) -> None:  # noqa: F811
        self.url = f"{redis_url}{'&' if '?' in redis_url else '?'}tag={uuid.uuid4().hex}"

    async def open(self) -> Transport:
        return await open_transport(self.url)


class TestRedisThatIsRestarted(Trouble):
    server: RedisServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder: Path = tmp_path_factory.mktemp("restarted")
        cls.server = RedisServer(folder)
        cls.server.start()
        yield
        cls.server.kill()

    async def open(self) -> Transport:
        return await open_transport(self.server.url)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
