"""A server of this run's own, one that may be restarted and killed, and one that knows of roles."""

from __future__ import annotations

import pytest
from brokers.sqs_server import (  # noqa: F401  # fixtures
    SQSServer,
    mortal_sqs_server,
    moto_server,
    sqs_server,
)


@pytest.fixture
def url(sqs_server: SQSServer) -> str:  # noqa: F811
    return sqs_server.url


@pytest.fixture
def counted(sqs_server: SQSServer) -> str:  # noqa: F811
    """The same, with its counts shown."""
    return f"{sqs_server.url}&depth=approximate&timeout=8"


@pytest.fixture
def mortal(mortal_sqs_server: SQSServer) -> SQSServer:  # noqa: F811
    return mortal_sqs_server
