"""Every test that asks for `python` runs under each CPython that the runtime promises; a missing one is skipped by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime.beside import PYTHONS, VERSIONS


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> Path:
    if request.param not in PYTHONS:
        pytest.skip(f"there is no CPython {request.param} on this machine")
    return PYTHONS[request.param]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [version for version in VERSIONS if version not in PYTHONS]
    if missing:
        terminalreporter.write_line(f"runtime: not tested on CPython {', '.join(missing)}, which this machine has not")
