"""What large payloads cost in memory: what is not needed any more is not kept, and what grows is not moved."""

from __future__ import annotations

import asyncio
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runtime.beside import PYTHONS, Beside

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/status").exists(),
    reason="how much memory a process had at most is only known on Linux, and how it is managed only of glibc",
)
SIZES = [10_000_000, 11_000_000, 12_500_000, 10_400_000]
"""Each a little larger than the last, whose place in memory it does not fit, and then a smaller one."""


def kilobytes(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def worker_of(pid: int) -> int:
    return int(subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("version", [each for each in ("3.11", "3.12", "3.13") if each in PYTHONS])
@pytest.mark.parametrize("handler", ["echo", "length", "produce"])
async def test_a_large_payload_costs_its_parent_once_its_size_and_its_worker_twice(version: str, handler: str) -> None:
    async with Beside(PYTHONS[version], f"handlers.{handler}") as beside, await beside.connect() as client:
        pids = client.hello.pid, worker_of(client.hello.pid)
        await client.call(b"1" if handler == "produce" else b'"x"')
        before = [kilobytes(pid, "VmRSS") for pid in pids]
        for size in SIZES:
            text = b'"' + b"x" * (size - 2) + b'"'
            reply = await client.call(b"%d" % (size - 2) if handler == "produce" else text)
            wanted = b"%d" % (size - 2) if handler == "length" else text
            assert reply.failure is None
            assert bytes(reply.items[0].payload) == wanted
        grown = [(kilobytes(pid, "VmHWM") - least) * 1024 / max(SIZES) for pid, least in zip(pids, before, strict=True)]
        assert grown[0] < 1.3
        assert grown[1] < 2.3


CALLS = """
import asyncio, re, sys, uvloop
from oncue.workloads.socket import RuntimeClient

def kilobytes(name):
    return int(re.search(name + r":\\s+([0-9]+) kB", open("/proc/self/status").read())[1])

async def main():
    text = b'"' + b"x" * 40_000_000 + b'"'
    async with await RuntimeClient.connect(sys.argv[1]) as client:
        await client.call(b'"x"')
        before = kilobytes("VmRSS")
        reply = await client.call(text)
        print((kilobytes("VmHWM") - before) * 1024 / len(text))
        assert bytes(reply.items[0].payload) == text

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a sidecar runs
    runner.run(main())
"""


async def test_a_large_result_costs_its_client_once_its_size() -> None:
    async with Beside(PYTHONS["3.11"] if "3.11" in PYTHONS else Path(sys.executable), "handlers.echo") as beside:
        done = subprocess.run(
            [sys.executable, "-c", CALLS, str(beside.socket)], capture_output=True, text=True, timeout=40, check=True
        )
        assert float(done.stdout) < 1.3


async def test_large_results_keep_their_bytes_while_others_come() -> None:
    async with Beside(Path(sys.executable), "handlers.echo") as beside, await beside.connect() as client:
        texts = [b'"' + b"%d" % number * 100_000 + b'"' for number in range(10)]
        replies = await asyncio.gather(*(client.call(text) for text in texts))
        assert [bytes(reply.items[0].payload) for reply in replies] == texts
