"""A virtual host for each test on a server of this run's own, and a server that may be restarted and killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from brokers.rabbitmq_server import RabbitMQServer, rabbitmq_server  # noqa: F401  # a fixture


@pytest.fixture
def server(rabbitmq_server: RabbitMQServer) -> RabbitMQServer:  # noqa: F811
    return rabbitmq_server


@pytest.fixture
def url(server: RabbitMQServer) -> str:
    """Of a virtual host without queues."""
    return server.vhost()


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """A server that may be stopped and killed, if it is started again."""
    server = RabbitMQServer(tmp_path_factory.mktemp("mortal"), management=False)
    try:
        server.start()
        yield server
    finally:
        server.close()
