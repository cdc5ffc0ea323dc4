"""A prefix for each test on a server of this run's own, and a server that may be restarted and killed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from brokers.nats_server import NATSServer, nats_server  # noqa: F401  # a fixture


@pytest.fixture
def server(nats_server: NATSServer) -> NATSServer:  # noqa: F811
    return nats_server


@pytest.fixture
def url(server: NATSServer) -> str:
    """Of a place without queues."""
    return f"{server.url}?prefix=t{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NATSServer]:
    """A server that may be stopped and killed, if it is started again."""
    server = NATSServer(tmp_path_factory.mktemp("mortal"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def mortal_url(mortal: NATSServer) -> str:
    return f"{mortal.url}?prefix=t{secrets.token_hex(6)}"
