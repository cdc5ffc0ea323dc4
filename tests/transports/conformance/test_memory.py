"""The suite on the memory transport in virtual and in real time, on a lesser one, and on one that is restarted."""

from __future__ import annotations

import uuid

import pytest
from transports.conformance.sound import InMemory, ModestTransport, Restartable

from oncue.testing import TransportConformance
from oncue.testing.conformance import Delays
from oncue.transports import open_transport
from oncue.transports.base import Transport
from oncue.transports.memory import MemoryStore, MemoryTransport


class TestMemory(TransportConformance):
    virtual_time = True

    @pytest.fixture(autouse=True)
    def name_store(self) -> None:
        self.url = f"memory:{uuid.uuid4().hex}"

    async def open(self) -> Transport:
        return await open_transport(self.url)


class TestMemoryInRealTime(Delays):
    """What depends on timers, which may be early or late by the resolution of a clock when they are real."""

    lease = 0.4
    tolerance = 0.3
    quiet = 0.05
    store: MemoryStore | None = None

    async def open(self) -> Transport:
        if self.store is None:
            self.store = MemoryStore()
        return MemoryTransport(self.store)


class TestModestTransport(InMemory):
    kind = ModestTransport


class TestRestartedStore(Restartable):
    pass
