"""Every test has an empty current folder, no settings from outside, and leaves no sockets of what it killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.local import state


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ONCUE_", "ASYA_"))]:
        monkeypatch.delenv(name)
    yield tmp_path
    state._tidy(state._read(tmp_path / state.HOME))
