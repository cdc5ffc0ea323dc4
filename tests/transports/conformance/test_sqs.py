"""The suite on the SQS transport: with ElasticMQ, with its counts shown, with one that is restarted, and in part with moto."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers.sqs_server import MotoServer, SQSServer, moto_server, sqs_server, sqs_url  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.testing.conformance import Basics, Depths, Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport


class _Whole:
    """Times are whole seconds there, and messages are asked for one second longer than a lease."""

    lease = 2.0
    tolerance = 2.0
    quiet = 1.2
    soon = 30.0  # ElasticMQ never answers those who wait for a queue that is deleted
    url = ""

    async def open(self) -> Transport:
        return await open_transport(self.url)


class TestSQS(_Whole, TransportConformance):
    @pytest.fixture(autouse=True)
    def choose_server(self, sqs_url: str) -> None:  # noqa: F811
        self.url = f"{sqs_url}&timeout=6"


class TestSQSWithItsCounts(_Whole, Depths):
    # What is fetched ahead of its turn is held, and counted so.
    test_depth_counts_what_waits_for_its_turn_in_a_fifo_queue = None

    @pytest.fixture(autouse=True)
    def choose_server(self, sqs_url: str) -> None:  # noqa: F811
        self.url = f"{sqs_url}&depth=approximate"


class TestSQSOfMoto(_Whole, Basics):
    @pytest.fixture(autouse=True)
    def choose_server(self, moto_server: MotoServer) -> None:  # noqa: F811
        self.url = moto_server.url


class TestSQSThatIsRestarted(_Whole, Trouble):
    server: SQSServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder: Path = tmp_path_factory.mktemp("restarted")
        cls.server = SQSServer(folder)
        cls.server.start()
        cls.url = cls.server.url
        yield
        cls.server.close()

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
