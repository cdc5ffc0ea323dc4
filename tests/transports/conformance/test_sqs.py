"""The suite on the SQS transport: with ElasticMQ, and with its counts shown.

Not with moto: to two who ask at the same moment it hands the same message, as calls without OnCue show as well.
"""

from __future__ import annotations

import asyncio

import pytest
from brokers.sqs_server import SQSServer, mortal_sqs_server, sqs_server, sqs_url  # noqa: F401  # fixtures

from oncue.testing import TransportConformance
from oncue.testing.conformance import Delays, Depths, Trouble
from oncue.transports import open_transport
from oncue.transports.base import Transport


class _Whole:
    """Times are whole seconds there, and messages are asked for one second longer than a lease."""

    lease = 2.0
    tolerance = 2.0  # no more than that second and half a lease: what is fetched again lies here for so long
    quiet = 0.6
    soon = 30.0  # ElasticMQ never answers those who wait for a queue that is deleted
    url = ""

    async def open(self) -> Transport:
        return await open_transport(self.url)


@pytest.mark.timeout(120)
class TestSQS(_Whole, TransportConformance):
    server: SQSServer

    @pytest.fixture(autouse=True)
    def choose_server(self, request: pytest.FixtureRequest) -> None:
        """One that may be restarted, for those cases that are about trouble."""
        if hasattr(Trouble, case := request.function.__name__):
            self.server = request.getfixturevalue("mortal_sqs_server")
            self.url = f"{self.server.url}&timeout=5"
            return
        self.url = f"{request.getfixturevalue('sqs_url')}&timeout=5"
        if hasattr(Delays, case):
            self.quiet = 1.2  # delays that differ by less may end in the same second

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)


class TestSQSWithItsCounts(_Whole, Depths):
    # What is fetched ahead of its turn is held, and counted so.
    test_depth_counts_what_waits_for_its_turn_in_a_fifo_queue = None

    @pytest.fixture(autouse=True)
    def choose_server(self, sqs_url: str) -> None:  # noqa: F811
        self.url = f"{sqs_url}&depth=approximate"
