"""The suite on the NATS transport: with a server of today, with one of before schedules, and with one that is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from brokers.nats_server import NATSServer, nats_server, nats_url, old_program  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.testing.conformance import Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestNATS(TransportConformance):
    tolerance = 0.8  # the server looks every quarter of a second for what is due
    quiet = 0.5

    @pytest.fixture(autouse=True)
    def choose_server(self, nats_url: str) -> None:  # noqa: F811
        self.url = nats_url

    async def open(self) -> Transport:
        return await open_transport(self.url)


class TestOldNATS(TransportConformance):
    server: NATSServer
    tolerance = 0.8

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.server = NATSServer(tmp_path_factory.mktemp("old"), binary=old_program())
        cls.server.start()
        yield
        cls.server.close()

    async def open(self) -> Transport:
        return await open_transport(self.server.url)


class TestNATSThatIsRestarted(Trouble):
    server: NATSServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.server = NATSServer(tmp_path_factory.mktemp("restarted"))
        cls.server.start()
        yield
        cls.server.close()

    async def open(self) -> Transport:
        return await open_transport(self.server.url)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
