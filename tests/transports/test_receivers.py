"""Those who wait for messages: as many are woken as there are messages, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from oncue.core.errors import ConnectionLostError
from oncue.transports.receivers import Receivers


class Shelf:
    """Messages, and those who take them, as a subscription has them."""

    def __init__(self) -> None:
        self.messages: deque[int] = deque()
        self.receivers = Receivers(lambda: len(self.messages))
        self.looks = 0

    async def take(self) -> int:
        while True:
            self.looks += 1
            if self.messages:
                return self.messages.popleft()
            await self.receivers.wait()

    def put(self, message: int) -> None:
        self.messages.append(message)
        self.receivers.wake()


async def waiting(shelf: Shelf, count: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(shelf.take()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def end(tasks: list[asyncio.Task[int]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_of_many_messages_that_come_one_by_one_wakes_one_receiver() -> None:
    shelf = Shelf()
    tasks = await waiting(shelf, 100)
    for number in range(20):
        shelf.put(number)
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert sorted(task.result() for task in done) == list(range(20))
    assert shelf.looks == 100 + 20
    await end(list(pending))


async def test_whoever_is_cancelled_after_being_woken_leaves_the_message_to_another() -> None:
    shelf = Shelf()
    tasks = await waiting(shelf, 10)
    shelf.put(7)
    for task in tasks[1:]:
        task.cancel()
    async with asyncio.timeout(10):
        assert await tasks[0] == 7
    await end(tasks)


async def test_whoever_is_cancelled_while_waiting_is_not_taken_for_one_that_takes_a_message() -> None:
    shelf = Shelf()
    tasks = await waiting(shelf, 10)
    await end(tasks)
    assert not shelf.receivers
    shelf.put(7)
    [task] = await waiting(shelf, 1)
    assert await task == 7
    [task] = await waiting(shelf, 1)
    shelf.put(8)
    async with asyncio.timeout(10):
        assert await task == 8


async def test_a_message_that_somebody_faster_took_is_missed_by_nobody_later() -> None:
    shelf = Shelf()
    tasks = await waiting(shelf, 3)
    shelf.put(1)
    assert await shelf.take() == 1  # before the one that was woken runs, who then waits again
    await asyncio.sleep(0)
    for number in (2, 3, 4):
        shelf.put(number)
    async with asyncio.timeout(10):
        assert sorted(await asyncio.gather(*tasks)) == [2, 3, 4]


async def test_an_error_reaches_all_who_wait_each_its_own_and_those_who_come_later_wait() -> None:
    shelf = Shelf()
    tasks = await waiting(shelf, 3)
    shelf.receivers.fail(lambda: ConnectionLostError("gone"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["gone"] * 3
    assert len({id(error) for error in errors}) == 3
    [task] = await waiting(shelf, 1)
    shelf.put(1)
    assert await task == 1


async def test_an_error_and_a_cancellation_at_once_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf()
    tasks = await waiting(shelf, 2)
    shelf.receivers.fail(lambda: ConnectionLostError("gone"))
    await end(tasks)
    [task] = await waiting(shelf, 1)
    shelf.put(1)
    async with asyncio.timeout(10):
        assert await task == 1
    assert not caplog.records
