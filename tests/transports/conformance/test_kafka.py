"""The suite on the Kafka transport, and with a server that is restarted."""

from __future__ import annotations

import asyncio

import pytest
from brokers.kafka_server import (  # fixtures
    KafkaServer,
    kafka_server,  # noqa: F401
    kafka_url,  # noqa: F401
    mortal_kafka,  # noqa: F401
    other_kafka,  # noqa: F401
)

from oncue.testing import TransportConformance
from oncue.testing.conformance import Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestKafka(TransportConformance):
    lease = 2.0
    tolerance = 1.5
    quiet = 1.0
    soon = 20.0

    @pytest.fixture(autouse=True)
    def choose_server(self, kafka_url: str) -> None:  # noqa: F811
        self.url = kafka_url

    async def open(self) -> Transport:
        return await open_transport(self.url)


class TestKafkaThatIsRestarted(Trouble):
    lease = 2.0
    tolerance = 1.5
    quiet = 1.0
    soon = 40.0

    @pytest.fixture(autouse=True)
    def choose_server(self, mortal_kafka: KafkaServer) -> None:  # noqa: F811
        self.server = mortal_kafka

    async def open(self) -> Transport:
        return await open_transport(f"{self.server.url}&session=4")

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
