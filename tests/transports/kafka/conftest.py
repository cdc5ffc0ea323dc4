"""A server of this run's own, whose queues are deleted after each test, and one that may be killed."""

from __future__ import annotations

import pytest
from brokers.kafka_server import KafkaServer, kafka_server, mortal_kafka, other_kafka  # noqa: F401  # fixtures

SESSION = "session=4"
"""Seconds after which a dead member is missed, so that a test does not wait for longer."""


@pytest.fixture
def server(kafka_server: KafkaServer) -> KafkaServer:  # noqa: F811
    return kafka_server


@pytest.fixture
def mortal(mortal_kafka: KafkaServer) -> KafkaServer:  # noqa: F811
    return mortal_kafka


@pytest.fixture
def url(server: KafkaServer) -> str:
    """With groups that notice a dead member soon."""
    return f"{server.url}&{SESSION}"
