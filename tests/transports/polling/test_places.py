"""Where queues are: asked once by all who want to know, and not remembered longer than it is true."""

from __future__ import annotations

import asyncio

import pytest

from oncue.core.errors import ConnectionLostError, QueueNotFoundError
from oncue.transports.polling.places import Places


class Service:
    """Says where queues are, once the gate is open."""

    def __init__(self, **places: int) -> None:
        self.places = places
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(self, name: str) -> int | None:
        self.asked.append(name)
        found = self.places.get(name)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return found


async def test_all_who_ask_at_the_same_time_are_told_by_one_request_and_later_ones_by_none() -> None:
    service = Service(work=1)
    places = Places(service.find)
    assert await asyncio.gather(*(places.get("work") for _ in range(5))) == [1] * 5
    assert await places.get("work") == 1
    assert service.asked == ["work"]
    service.places["work"] = 2
    assert await places.look_up("work") == 2
    assert await places.get("work") == 2


async def test_what_is_not_there_is_asked_for_each_time() -> None:
    service = Service()
    places = Places(service.find)
    for _ in range(2):
        with pytest.raises(QueueNotFoundError, match="'work'"):
            await places.get("work")
    places.know("work", 3)
    assert await places.get("work") == 3
    assert len(service.asked) == 2


async def test_what_was_forgotten_while_it_was_looked_for_is_not_remembered() -> None:
    service = Service(work=1)
    places = Places(service.find)
    service.gate.clear()
    early = asyncio.create_task(places.get("work"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    service.places["work"] = 2
    places.forget("work")
    service.gate.set()
    assert await early == 1
    assert await places.get("work") == 2


async def test_each_is_told_by_an_error_of_its_own_and_one_who_is_cancelled_stops_nobody() -> None:
    service = Service(work=1)
    service.error = ConnectionLostError("gone")
    service.gate.clear()
    places = Places(service.find)
    asking = [asyncio.create_task(places.get("work")) for _ in range(3)]
    await asyncio.sleep(0.01)
    asking[0].cancel()
    service.gate.set()
    await asyncio.wait(asking)
    assert asking[0].cancelled()
    first, second = (task.exception() for task in asking[1:])
    assert (str(first), str(second)) == ("gone", "gone")
    assert first is not second
    service.error = None
    assert await places.get("work") == 1
