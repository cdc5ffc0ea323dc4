"""The suite on the Pub/Sub transport, with Google's emulator.

Nothing is restarted: the emulator keeps all in memory and forgets it, by its own fault, as one test beside this suite shows.
"""

from __future__ import annotations

import pytest
from brokers.pubsub_server import pubsub_server, pubsub_url  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestPubSub(TransportConformance):
    """Deadlines are whole seconds there, and one second longer than a lease."""

    lease = 2.0
    tolerance = 2.0
    quiet = 1.2
    soon = 20.0
    url = ""

    @pytest.fixture(autouse=True)
    def choose_server(self, pubsub_url: str) -> None:  # noqa: F811
        self.url = pubsub_url

    async def open(self) -> Transport:
        return await open_transport(self.url)
