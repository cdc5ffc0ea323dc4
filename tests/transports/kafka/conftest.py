"""A server of this run's own, whose queues are deleted after each test, and one that may be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from brokers.kafka_server import KafkaServer, kafka_server  # noqa: F401  # a fixture


@pytest.fixture
def url(kafka_server: KafkaServer) -> str:  # noqa: F811
    """With groups that notice a dead member as soon as they may."""
    return f"{kafka_server.url}&session=6"


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A server that may be stopped and killed, if it is started again."""
    server = KafkaServer(tmp_path_factory.mktemp("mortal"))
    try:
        server.start()
        yield server
    finally:
        server.close()
