"""Who may have killed a runtime: seen by nobody's clock but the order of what happens."""

from __future__ import annotations

import asyncio

import pytest

from oncue.sidecar import suspects as module
from oncue.sidecar.suspects import Suspects


async def running(suspects: Suspects, id: str, log: list[str], go: asyncio.Event) -> None:
    async with suspects.watch(id):
        log.append(f"+{id}")
        await go.wait()
        log.append(f"-{id}")
    suspects.survived(id)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_has_seen_two_deaths_runs_beside_those_only_that_have_seen_none() -> None:
    suspects, log, go = Suspects(), [], asyncio.Event()
    suspects.died(["one", "two", "twice", "again"])
    suspects.died(["twice", "again"])
    async with asyncio.TaskGroup() as tasks:
        for id in ("one", "two", "twice", "again", "fresh"):
            tasks.create_task(running(suspects, id, log, go))
        await turns()
        assert log == ["+one", "+two", "+fresh"]
        assert suspects.watched is None
        go.set()
    assert log[3:6] == ["-one", "-two", "-fresh"]
    assert log[6:] == ["+twice", "-twice", "+again", "-again"]
    assert not suspects, "who survives is clear"


async def test_whose_process_died_runs_alone_until_it_has_survived() -> None:
    suspects, log, go = Suspects(), [], asyncio.Event()
    suspects.crashed("a")
    suspects.crashed("b")
    go.set()
    async with suspects.watch("a"):
        other = asyncio.create_task(running(suspects, "b", log, go))
        await turns()
        assert log == []
    await other
    assert log == ["+b", "-b"]
    assert suspects, "a may kill again"
    suspects.survived("a")
    assert not suspects


async def test_who_is_watched_is_known_while_it_runs_and_stays_suspicious_when_it_fails() -> None:
    suspects = Suspects()
    suspects.died(["m"])
    suspects.died(["m"])
    with pytest.raises(ConnectionResetError):
        async with suspects.watch("m"):
            assert suspects.watched == "m"
            raise ConnectionResetError
    assert suspects.watched is None
    assert suspects


async def test_a_wait_that_is_cancelled_leaves_the_place_free() -> None:
    suspects, log, go = Suspects(), [], asyncio.Event()
    suspects.died(["a", "b"])
    suspects.died(["a", "b"])
    first = asyncio.create_task(running(suspects, "a", log, go))
    second = asyncio.create_task(running(suspects, "b", log, go))
    await turns()
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await turns()
    go.set()
    await running(suspects, "b", log, go)
    assert log == ["+a", "+b", "-b"]


def test_it_remembers_so_many_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    suspects = Suspects()
    suspects.died(["a", "b", "c"])
    assert list(suspects._deaths) == ["b", "c"]
