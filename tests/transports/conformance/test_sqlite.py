"""The suite on the SQLite transport."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.testing import TransportConformance
from oncue.transports import open_transport
from oncue.transports.base import Transport


class TestSQLite(TransportConformance):
    @pytest.fixture(autouse=True)
    def choose_file(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/queues.db"

    async def open(self) -> Transport:
        return await open_transport(self.url)
