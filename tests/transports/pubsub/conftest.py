"""A server of this run's own, and one that may be frozen and killed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import uuid4

import pytest
from brokers.pubsub_server import PubSubServer, pubsub_server  # noqa: F401  # fixtures

from oncue.transports.base import QueueSpec
from oncue.transports.pubsub import PubSubTransport, open_pubsub

Opened = Callable[..., AbstractAsyncContextManager[tuple[PubSubTransport, str]]]


@pytest.fixture
def url(pubsub_server: PubSubServer) -> str:  # noqa: F811
    return pubsub_server.url


@pytest.fixture
def alone(pubsub_server: PubSubServer, worker_id: str) -> str:  # noqa: F811
    """A project of the server, whose queues `work`, `next` and `copies` nobody else uses at the moment."""
    return f"pubsub://alone-{worker_id}?emulator={pubsub_server.host}"


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSubServer]:
    """A server that may be frozen and killed, if it is started again; its messages are gone then."""
    server = PubSubServer(tmp_path_factory.mktemp("mortal"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def opened() -> Opened:
    """Opens a transport with a new queue, which is deleted in the end."""

    @asynccontextmanager
    async def open_(url: str, **spec: object) -> AsyncIterator[tuple[PubSubTransport, str]]:
        name = f"work-{uuid4().hex[:8]}"
        transport = await open_pubsub(url)
        try:
            await transport.declare(QueueSpec(name=name, **spec))
            yield transport, name
            await transport.delete(name)
        finally:
            await transport.close()

    return open_
