"""A server of this run's own, and one that may be restarted and killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from brokers.sqs_server import (  # noqa: F401  # fixtures
    MotoServer,
    SQSServer,
    moto_server,
    sqs_server,
)


@pytest.fixture
def url(sqs_server: SQSServer) -> str:  # noqa: F811
    return sqs_server.url


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """A server that may be stopped and killed, if it is started again; its messages are on disk."""
    server = SQSServer(tmp_path_factory.mktemp("mortal"))
    try:
        server.start()
        yield server
    finally:
        server.close()
