"""Handlers that hang, crash, exit or run out of memory: each is answered with its own reason, and the next one works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runtime.beside import NEWEST, OLDEST, Beside, alive, begin, cpu, in_hand, until

ENDS: list[tuple[Any, str, str, dict[str, Any]]] = [
    ("segfault", "crash_error", "the handler's process was killed by SIGSEGV", {"type": "SIGSEGV", "signal": "SIGSEGV"}),
    ("abort", "crash_error", "the handler's process was killed by SIGABRT", {"signal": "SIGABRT"}),
    (["kill", "SIGKILL"], "crash_error", "the handler's process was killed by SIGKILL", {"signal": "SIGKILL"}),
    (["kill", "SIGTERM"], "crash_error", "the handler's process was killed by SIGTERM", {"signal": "SIGTERM"}),
    (["exit", 0], "exit_error", "the handler ended its process with exit status 0", {"exit_status": 0}),
    (["exit", 7], "exit_error", "the handler ended its process with exit status 7", {"exit_status": 7}),
    (["exit in thread", 5], "exit_error", "the handler ended its process with exit status 5", {"exit_status": 5}),
    (["orphan", 60], "exit_error", "the handler ended its process with exit status 9", {"exit_status": 9}),
    ("close", "crash_error", "the handler's process was killed by SIGKILL", {}),
]  # fmt: skip


async def test_each_end_of_a_process_is_told_apart_and_the_next_message_works(python: Path) -> None:
    async with Beside(python, "handlers.act") as beside:
        for payload, code, text, details in ENDS:
            found, told = await beside.fault(payload)
            assert (found, told["message"]) == (code, text)
            assert told.items() >= details.items()
            assert (await beside.send(["pid", 0]))[0]["payload"] in beside.workers()


async def test_a_handler_that_forks_is_answered_by_its_parent_alone(python: Path) -> None:
    async with Beside(python, "handlers.act") as beside:
        (worker,) = beside.workers()
        for _ in range(5):
            assert (await beside.send(["fork", 0]))[0]["payload"] == "parent"
            assert {(await beside.send(["pid", 0]))[0]["payload"] for _ in range(5)} == {worker}


async def test_an_answer_that_was_given_before_the_end_counts(python: Path, tmp_path: Path) -> None:
    """Also when the parent hears of the end first: here because of another worker's."""
    settings = {"ONCUE_PROCESSES": "2"}
    async with Beside(python, "handlers.touch", **settings) as beside, await beside.connect() as client:
        file = tmp_path / "began"
        call = begin(client.call(json.dumps(str(file)).encode()))
        await until(file.exists)
        worker = int(file.read_text())
        (other,) = set(beside.workers()) - {worker}
        os.kill(beside.pid, signal.SIGSTOP)
        os.kill(other, signal.SIGKILL)
        await asyncio.sleep(0.05)
        (tmp_path / "began.go").touch()
        await asyncio.sleep(0.1)  # it answers, which nobody who could tell can see
        os.kill(worker, signal.SIGKILL)
        os.kill(beside.pid, signal.SIGCONT)
        assert (await call).failure is None


async def test_the_place_of_a_crash_is_in_its_traceback(python: Path) -> None:
    async with Beside(python, "handlers.act") as beside:
        _, told = await beside.fault("segfault")
        assert "Segmentation fault" in told["traceback"]
        assert "in act" in told["traceback"]
        assert "runtime.py" not in told["traceback"]


@pytest.mark.parametrize("payload", [["sleep", 60], ["regex", 0]])
async def test_a_handler_that_hangs_is_ended_and_its_place_is_told(python: Path, payload: list[Any]) -> None:
    async with Beside(python, "handlers.act", ASYA_RUNTIME_TIMEOUT="300ms") as beside:
        code, told = await beside.fault(payload)
        assert (code, told["type"], told["message"]) == ("timeout_error", "TimeoutError", "not finished within 0.3 s")
        assert "in act" in told["traceback"]
        assert (await beside.send(["pid", 0]))[0]["payload"] in beside.workers()


async def test_memory_over_the_limit_is_told(python: Path) -> None:
    async with Beside(python, "handlers.act", ONCUE_MEMORY_LIMIT="400Mi") as beside:
        code, told = await beside.fault(["allocate", 2**30])
        assert (code, told["type"]) == ("oom_error", "MemoryError")
        assert (await beside.fault(["fill", 1000]))[0] == "oom_error"
        assert (await beside.send(["allocate", 1000]))[0]["payload"] == 1000


CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def cgroup() -> Any:
    folder = CGROUPS / f"oncue-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(200 * 2**20))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield folder
    folder.rmdir()


async def test_a_process_that_the_kernel_kills_for_memory_is_told(cgroup: Path, tmp_path: Path) -> None:
    async with Beside(NEWEST, "handlers.act") as beside:
        for pid in [beside.pid, *beside.workers()]:
            (cgroup / "cgroup.procs").write_text(str(pid))
        code, told = await beside.fault(["fill", 400])
        assert (code, told["message"]) == ("oom_error", "memory ran out, and the kernel killed the handler's process")
        assert (await beside.send(["allocate", 1000]))[0]["payload"] == 1000


async def test_other_processes_go_on(python: Path) -> None:
    async with Beside(python, "handlers.act", ONCUE_PROCESSES="2") as beside, await beside.connect() as client:
        slow = begin(client.call(b'["sleep", 0.7]'))
        await in_hand(client, 1)
        crashed = await client.call(b'"segfault"')
        assert crashed.failure is not None
        assert crashed.failure.code == "crash_error"
        assert (await slow).failure is None


async def test_bystanders_of_a_hung_thread_are_told_from_the_guilty(python: Path) -> None:
    settings = {"ONCUE_CONCURRENCY": "3"}
    async with Beside(python, "handlers.act", **settings) as beside, await beside.connect() as client:
        others = [begin(client.call(b'["sleep", 60]')) for _ in range(2)]
        await in_hand(client, 2)
        guilty = await client.call(b'["regex", 0]', handler_timeout=0.4)
        assert guilty.failure is not None
        assert guilty.failure.code == "timeout_error"
        for other in await asyncio.gather(*others):
            assert other.failure is not None
            assert (other.failure.code, other.bystander) == ("crash_error", True)


async def test_all_that_ran_in_a_crashed_process_are_suspects(python: Path) -> None:
    async with Beside(python, "handlers.act", ONCUE_CONCURRENCY="2") as beside, await beside.connect() as client:
        other = begin(client.call(b'["sleep", 60]'))
        await in_hand(client, 1)
        crashed = await client.call(b'"segfault"')
        assert (crashed.suspects, crashed.bystander) == (2, False)
        assert (await other).suspects == 2


async def test_what_had_not_begun_is_not_answered_with_a_crash() -> None:
    async with Beside(OLDEST, "handlers.act") as beside, await beside.connect() as client:
        await asyncio.gather(*(client.call(b'["pid", 0]') for _ in range(50)))  # quick: the next are sent ahead
        crash = begin(client.call(b'["kill", "SIGKILL"]'))
        others = [begin(client.call(b'["pid", 0]')) for _ in range(100)]
        assert (await crash).failure is not None
        assert all(reply.failure is None for reply in await asyncio.gather(*others))


async def test_workers_end_with_their_parent(python: Path) -> None:
    beside = Beside(python, "handlers.act")
    async with beside:
        workers = beside.workers()
        hung = begin(beside.send(["regex", 0]))
        await until(lambda: cpu(workers) > 2)
        os.kill(beside.pid, signal.SIGKILL)
        await beside.process.wait()
        await until(lambda: not any(map(alive, workers)), within=5)
        await asyncio.gather(hung, return_exceptions=True)
        for name in ("asya-runtime.sock", "runtime-ready"):
            (beside.folder / name).unlink()
        beside.expect(-signal.SIGKILL)
