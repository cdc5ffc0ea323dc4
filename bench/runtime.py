"""Measures the runtime and its socket: `python -m bench.runtime`, alone on the machine, please.

The runtime is the real program in processes of its own. Every answer is compared, and a wrong one makes the program fail.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from oncue.workloads.socket import RuntimeClient, announced, exchange

RUNTIME = Path(__file__).parents[1] / "src/oncue/runtime.py"
IN_FLIGHT = 64
ENVELOPE = b'{"id":"m-1","route":{"actors":["a","b"],"current":0},"payload":{"x":1}}'
HANDLERS = """
def same(payload):
    return payload

async def same_in_loop(payload):
    return payload

def length(payload):
    return len(payload)

def produce(payload):
    return "x" * payload
"""


class WrongAnswerError(Exception):
    """The runtime did not answer what it was asked."""


@asynccontextmanager
async def runtime(python: str, handler: str, **settings: str) -> AsyncIterator[Path]:
    """A running runtime; the value is the folder of its socket."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work.py").write_text(HANDLERS)
        surroundings = os.environ | {"ONCUE_HANDLER": f"work.{handler}", "ONCUE_SOCKET_DIR": name} | settings
        command = [python, RUNTIME]
        process = subprocess.Popen(command, env=surroundings, cwd=folder, stderr=-3)  # noqa: ASYNC220  # quick enough here
        try:
            while announced(folder) is None and process.poll() is None:  # noqa: ASYNC110  # another process's file
                await asyncio.sleep(0.005)
            yield folder
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def check(wanted: object, found: object) -> None:
    if wanted != found:
        raise WrongAnswerError(f"asked for {wanted!r:.100}, got {found!r:.100}")


async def ask(client: RuntimeClient, body: bytes, wanted: bytes, *, envelope: bool = False) -> None:
    reply = await client.call(body, envelope=envelope)
    check(None, reply.failure)
    check(wanted, bytes(reply.items[0].payload))


async def lone(client: RuntimeClient, count: int) -> tuple[float, float]:
    """Milliseconds of a round trip with nothing else under way: the median and the 99th of a hundred."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        await ask(client, ENVELOPE, b'{"x":1}', envelope=True)
        taken.append((time.perf_counter() - started) * 1e3)
    taken.sort()
    return statistics.median(taken), taken[len(taken) * 99 // 100]


async def one_shot(path: Path) -> None:
    body = b'{"payload":{"x":1},"route":{"actors":["a"],"current":0}}'
    check(b'[{"payload":{"x":1},"route":{"actors":["a"],"current":1}}]', await exchange(path, body))


async def rate(work: Callable[[], Awaitable[None]], count: int, lanes: int) -> float:
    """How often a second `work` is done, by so many at the same time."""

    async def lane() -> None:
        for _ in range(count // lanes):
            await work()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return count / (time.perf_counter() - started)


def kilobytes(pid: int, file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


def processes(pid: int) -> list[int]:
    """A runtime's parent and its workers."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [pid, *map(int, found)]


async def throughput(python: str, count: int) -> None:
    for handler in ("same", "same_in_loop"):
        async with runtime(python, handler, ONCUE_CONCURRENCY="64" if handler == "same_in_loop" else "1") as folder:
            async with await RuntimeClient.connect(folder / "asya-runtime.sock") as client:
                median, slow = await lone(client, count // 20)
                many = await rate(lambda: ask(client, ENVELOPE, b'{"x":1}', envelope=True), count, IN_FLIGHT)
            single = await rate(partial(one_shot, folder / "asya-runtime.sock"), count // 10, 1)
        print(f"{handler:14} lone {median:.3f} ms, 99 % under {slow:.3f} ms; {IN_FLIGHT} in flight {many:,.0f}/s; "
              f"one-shot {single:,.0f}/s")  # fmt: skip


async def payloads(python: str) -> None:
    for size in (10**6, 10**7):
        text = b'"' + b"x" * (size - 2) + b'"'
        count = 400_000_000 // size
        cases = {"in": ("length", text, b"%d" % (size - 2)), "out": ("produce", b"%d" % (size - 2), text)}
        cases["both ways"] = ("same", text, text)
        for name, (handler, body, wanted) in cases.items():
            async with (
                runtime(python, handler) as folder,
                await RuntimeClient.connect(folder / "asya-runtime.sock") as client,
            ):
                pids = processes(client.hello.pid)
                before = sum(kilobytes(pid, "status", "VmRSS") for pid in pids)
                await ask(client, body, wanted)
                after = [kilobytes(pid, "status", "VmHWM") for pid in pids]
                times = (sum(after) - before) * 1024 / size
                done = await rate(lambda body=body, wanted=wanted: ask(client, body, wanted), count, 4)
            moved = done * size * (2 if name == "both ways" else 1) / 1e6
            print(
                f"{size // 10**6:3} MB {name:10} {moved:,.0f} MB/s; one takes {times:.1f} times its size in both processes"
            )


async def memory(python: str, least: int) -> None:
    for handler in ("same", "same_in_loop"):
        async with (
            runtime(python, handler) as folder,
            await RuntimeClient.connect(folder / "asya-runtime.sock") as client,
        ):
            await ask(client, b"1", b"1")
            whole = sum(kilobytes(pid, "smaps_rollup", "Pss") for pid in processes(client.hello.pid))
        print(
            f"{handler:14} {whole / 1024:.1f} MB for parent and worker, {(whole - least) / 1024:.1f} above a bare interpreter"
        )


def bare_interpreter(python: str) -> int:
    """Kilobytes of an interpreter that does nothing."""
    bare = subprocess.Popen([python, "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1)
    assert bare.stdout is not None
    assert bare.stdin is not None
    bare.stdout.readline()
    found = kilobytes(bare.pid, "smaps_rollup", "Pss")
    bare.stdin.close()
    bare.wait()
    bare.stdout.close()
    return found


async def measure(python: str, count: int) -> None:
    print(f"{python} behind {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    await throughput(python, count)
    await payloads(python)
    await memory(python, bare_interpreter(python))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the handlers")
    parser.add_argument("--count", type=int, default=100_000, help="round trips")
    chosen = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(measure(chosen.python, chosen.count))
    else:
        uvloop.run(measure(chosen.python, chosen.count))


if __name__ == "__main__":
    main()
