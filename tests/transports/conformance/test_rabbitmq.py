"""The suite on the RabbitMQ transport: with quorum queues, with classic ones, and with a server that is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers.rabbitmq_server import RabbitMQServer, rabbitmq_server, rabbitmq_url  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.testing.conformance import Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestRabbitMQ(TransportConformance):
    tolerance = 0.8  # the server shares the machine with all tests that run at the same time
    options = ""

    @pytest.fixture(autouse=True)
    def choose_server(self, rabbitmq_url: str) -> None:  # noqa: F811
        self.url = f"{rabbitmq_url}{'&' if '?' in rabbitmq_url else '?'}{self.options}".rstrip("?&")

    async def open(self) -> Transport:
        return await open_transport(self.url)


class TestRabbitMQWithClassicQueues(TestRabbitMQ):
    options = "queues=classic"


class TestRabbitMQThatIsRestarted(Trouble):
    server: RabbitMQServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder: Path = tmp_path_factory.mktemp("restarted")
        cls.server = RabbitMQServer(folder, management=False)
        cls.server.start()
        yield
        cls.server.close()

    async def open(self) -> Transport:
        return await open_transport(self.server.url)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
