"""A store of its own for every test of sidecars."""

from __future__ import annotations

from pathlib import Path

import pytest
from sidecar.pods import Queues


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def queues(url: str) -> Queues:
    return Queues(url)
