"""An empty folder for each test, and the command line called in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from commandline import URL

from oncue.cli import main

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, no settings from outside, and the logging as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ONCUE", "ASYA"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ONCUE_URL", URL)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def run() -> Run:
    """Calls the command line in this process."""

    def call(*words: str, **options: Any) -> Result:
        return CliRunner().invoke(main, list(words), **options)

    return call
