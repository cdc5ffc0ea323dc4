"""The suite on the Kafka transport, and with a server that is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from brokers.kafka_server import KafkaServer, kafka_server, kafka_url  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.testing.conformance import Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport

_PARTITIONS = "a partition has one consumer in a group, so what is in it goes to that one alone"


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

    @pytest.mark.skip(_PARTITIONS)
    def test_a_subscription_keeps_no_more_from_others_than_prefetch(self) -> None: ...

    @pytest.mark.skip(_PARTITIONS)
    def test_what_does_not_fit_after_a_resize_goes_to_others(self) -> None: ...

    @pytest.mark.skip(_PARTITIONS)
    def test_depth_counts_new_arrivals_behind_old_work_in_hand(self) -> None: ...


class TestKafkaThatIsRestarted(Trouble):
    server: KafkaServer
    lease = 2.0
    tolerance = 1.5
    quiet = 1.0
    soon = 40.0

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def start(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        cls.server = KafkaServer(tmp_path_factory.mktemp("restarted"))
        cls.server.start()
        yield
        cls.server.close()

    async def open(self) -> Transport:
        return await open_transport(self.server.url)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)
