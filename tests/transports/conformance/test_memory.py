"""The suite on the memory transport."""

from __future__ import annotations

import uuid

import pytest

from oncue.testing import TransportConformance
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestMemory(TransportConformance):
    virtual_time = True

    @pytest.fixture(autouse=True)
    def name_store(self) -> None:
        self.url = f"memory:{uuid.uuid4().hex}"

    async def open(self) -> Transport:
        return await open_transport(self.url)
