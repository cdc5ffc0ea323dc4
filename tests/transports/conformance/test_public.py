"""The suite as somebody else runs it: from a folder of their own, with pytest and no plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SUITE = """
from oncue.testing import TransportConformance
from oncue.transports.memory import MemoryStore, MemoryTransport


class Transport(MemoryTransport):
    {fault}


class TestMine(TransportConformance):
    virtual_time = True
    store = None

    async def open(self):
        self.store = self.store or MemoryStore()
        return Transport(self.store)
"""
FAULT = "async def purge(self, queue): return 7"


def run(folder: Path, *options: str, fault: str = "pass") -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(SUITE.format(fault=fault))
    command = [sys.executable, "-W", "error", "-m", "pytest", "-rs", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_needs_no_plugin_and_says_why_cases_are_skipped(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b[89]\d passed, \d skipped", done.stdout)
    assert "there is nothing to restart, or no hook that does it" in done.stdout
    assert "warning" not in done.stdout


def test_a_failure_shows_the_promise_and_what_was_compared(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "purging", fault=FAULT)
    assert done.returncode == 1
    assert '"""T22: so that what was scheduled can be called off' in done.stdout
    assert re.search(r"^E +assert 7 == 2$", done.stdout, re.MULTILINE)


def test_an_author_who_forgot_to_say_how_to_open_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_forgotten.py").write_text(
        "from oncue.testing import TransportConformance\nclass TestIt(TransportConformance):\n    pass\n"
    )
    done = run(tmp_path, "test_forgotten.py", "-k", "byte_for_byte")
    assert done.returncode == 1
    assert "a transport's suite has to say how to open it" in done.stdout
