"""A fork while threads are inside SQLite: the child lets go of what is open without a call to SQLite, so it cannot hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

START = """
import asyncio, os, sqlite3, threading
from datetime import UTC, datetime
from oncue.results import Result, open_results
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec

URL = "sqlite:///jobs.db"

def hammer():
    connection = sqlite3.connect(":memory:")
    while True:
        connection.execute("SELECT value FROM json_each(?)", ["[" + "1," * 200 + "1]"]).fetchall()

async def opened():
    transport = await open_transport(URL)
    await transport.declare(QueueSpec(name="work"))
    await transport.depth("work")
    results = open_results(URL)
    await results.put(result("0"))
    return transport, results

def result(id):
    return Result(id=id, status="succeeded", actor="a", finished_at=datetime.now(UTC), envelope=b"{}")
"""

STRANGERS = """
async def main():
    await opened()
    for _ in range(2):
        threading.Thread(target=hammer, daemon=True).start()
    for _ in range(300):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    os._exit(0)
"""

RESULTS = """
async def main():
    transport, results = await opened()
    async def put(number):
        await results.put(result(str(number)))
    for number in range(100):
        putting = asyncio.create_task(put(number))
        await asyncio.sleep(0)
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0
        await putting
    child = os.fork()
    if not child:  # the store opens the file anew here
        rows = results._with(lambda connection: connection.execute("SELECT id FROM oncue_results").fetchall(), [])
        os._exit(0 if len(rows) == 100 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(await results.list(limit=1000)) == 100
    await results.close()
    await transport.close()
"""


@pytest.mark.parametrize("program", [STRANGERS, RESULTS], ids=["other threads", "results"])
def test_a_fork_hangs_for_no_lock_of_sqlite(program: str, tmp_path: Path) -> None:
    end = "\nfrom oncue.main_loop import run_in_loop\nrun_in_loop(main())\n"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", START + program + end]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
