"""SIGTERM finishes what runs; a second one does not wait; nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from runtime.beside import NEWEST, Beside, alive, begin, in_hand, until


async def test_what_runs_is_finished_and_what_waits_is_given_back(python: Path) -> None:
    async with Beside(python, "handlers.pids") as beside, await beside.connect() as client:
        running = begin(client.call(b"0.4"))
        await in_hand(client, 1)
        waiting = begin(client.call(b"0"))
        await in_hand(client, 2)
        beside.tell(signal.SIGTERM)
        reply = await waiting
        assert reply.failure is not None
        assert reply.failure.code == "stopping_error"
        assert client.stopping
        late = begin(client.call(b"0"))
        assert (await running).failure is None
        assert (await asyncio.gather(late, return_exceptions=True))[0] is not None
        await client.lose()


async def test_one_shot_requests_that_came_are_all_answered(python: Path) -> None:
    async with Beside(python, "handlers.pids") as beside:
        calls = [begin(beside.send(0.1)) for _ in range(4)]
        async with await beside.connect() as client:
            await client.ping()
            beside.tell(signal.SIGINT)
            answers = await asyncio.gather(*calls)
            assert all("payload" in answer[0] for answer in answers)


async def test_no_new_connection_is_taken_while_stopping() -> None:
    async with Beside(NEWEST, "handlers.pids") as beside, await beside.connect() as client:
        running = begin(client.call(b"0.5"))
        await in_hand(client, 1)
        beside.tell(signal.SIGTERM)
        await beside.said("stopping once 1 running requests are finished")
        await until(lambda: not beside.socket.exists())
        assert not (beside.folder / "runtime-ready").exists()
        assert (await running).failure is None


async def test_a_second_signal_does_not_wait(python: Path) -> None:
    beside = Beside(python, "handlers.act")
    async with beside:
        workers = beside.workers()
        async with await beside.connect() as client:
            hung = begin(client.call(b'["regex", 0]'))
            await in_hand(client, 1)
            beside.tell(signal.SIGTERM)
            await beside.said("stopping once")
            beside.tell(signal.SIGTERM)
            assert await beside.process.wait() == 128 + signal.SIGTERM
            await asyncio.gather(hung, return_exceptions=True)
        assert not any(map(alive, workers))
        beside.expect(143)


async def test_workers_leave_as_programs_do(python: Path, tmp_path: Path) -> None:
    async with Beside(python, "farewell.work", FAREWELL=str(tmp_path / "said")) as beside:
        await beside.send(1)
    assert (tmp_path / "said").exists()


async def test_a_signal_while_loading_ends_it_at_once(python: Path) -> None:
    beside = Beside(python, "slow_to_load.work")
    await beside.start()
    await beside.said("loading begins")
    beside.tell(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await beside.process.wait() == 0
    await beside.end(None)
