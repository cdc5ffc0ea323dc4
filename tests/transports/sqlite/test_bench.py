"""The bench program of this transport runs, and would notice a message that was lost or invented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

MISCOUNTS = """
from bench.transport import MiscountError, Tally
from oncue.core.message import Message

def fails(*ids):
    tally = Tally(3)
    try:
        for id in ids:
            tally.add(Message(b"0" + b"." * 100, id))
        tally.check()
    except MiscountError:
        return True
    return False

assert not fails("0", "2", "1")
assert fails("0", "1"), "one is missing"
assert fails("0", "1", "1", "2"), "one came twice"
assert fails("0", "1", "2", "3"), "one was never sent"
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False, capture_output=True, text=True)


def test_it_measures_and_reports() -> None:
    done = run(
        *("-m", "bench.transport", "--messages", "500", "--backlog", "5000"),
        *("--rounds", "1", "--idle", "1", "--lone", "5"),
    )
    assert done.returncode == 0, done.stderr
    for line in ("messages a second", "milliseconds", "of one core", "enqueue a second", "drain a second", "resident"):
        assert line in done.stdout


def test_it_notices_what_is_lost_doubled_or_invented() -> None:
    done = run("-c", MISCOUNTS)
    assert done.returncode == 0, done.stderr
