"""Entries that are gathered into calls: which go together, and what becomes of those that are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from oncue.core.errors import (
    ConnectionLostError,
    LeaseLostError,
    MessageTooLargeError,
    OnCueError,
    PartialSendError,
    QueueNotFoundError,
    ThrottledError,
)
from oncue.transports.polling.lines import Job, Line, Parcel, Refusal, send

Answer = Callable[[Sequence[Job]], Mapping[int, Refusal]]


def nothing(_: Sequence[Job]) -> Mapping[int, Refusal]:
    return {}


class Service:
    """Takes three entries of ten bytes in all. `answer` says what it refuses; with `gate` closed it answers nobody."""

    most, largest = 3, 10

    def __init__(self, answer: Answer = nothing) -> None:
        self.answer = answer
        self.asked: list[list[Any]] = []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, jobs: Sequence[Job], _until: float) -> Mapping[int, Refusal]:
        self.asked.append([job.entry for job in jobs])
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await self.gate.wait()
            return self.answer(jobs)
        finally:
            self.at_once -= 1

    def is_passing(self, error: OnCueError) -> bool:
        return isinstance(error, ThrottledError)


def line(service: Service, forgotten: list[str] | None = None, *, ordered: bool = False) -> Line:
    return Line(service, "work", (forgotten if forgotten is not None else []).append, ordered=ordered)


async def all_of(line: Line, entries: Sequence[str], **words: Any) -> Sequence[BaseException | None]:
    """What came of each."""
    doing = (line.do(entry, len(entry), words.get("until", float("inf")), words.get("common")) for entry in entries)
    return await asyncio.gather(*doing, return_exceptions=True)


def in_turn(*answers: Answer | OnCueError) -> Answer:
    """One after the other, the last one for ever."""
    waiting = list(answers)

    def answer(jobs: Sequence[Job]) -> Mapping[int, Refusal]:
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, OnCueError):
            raise found
        return found(jobs)

    return answer


async def test_what_comes_together_goes_out_together_as_far_as_it_fits() -> None:
    service = Service()
    await all_of(line(service), ["a", "b", "c", "d"])
    assert service.asked == [["a", "b", "c"], ["d"]]
    service.asked.clear()
    await all_of(line(service), ["aaaaaa", "bbbbbb", "c"])
    assert service.asked == [["aaaaaa"], ["bbbbbb", "c"]]


async def test_one_call_is_made_at_once_and_others_wait_until_they_are_full() -> None:
    service = Service()
    one = line(service)
    service.gate.clear()
    doing = [asyncio.create_task(all_of(one, [entry])) for entry in "ab"]
    await asyncio.sleep(0.01)
    doing += [asyncio.create_task(all_of(one, [entry])) for entry in "cd"]
    await asyncio.sleep(0.01)
    assert service.asked == [["a", "b"]]
    doing.append(asyncio.create_task(all_of(one, ["e"])))
    await asyncio.sleep(0.01)
    assert service.asked == [["a", "b"], ["c", "d", "e"]]
    assert not one.idle
    service.gate.set()
    await asyncio.gather(*doing)
    await asyncio.sleep(0)
    assert one.idle


async def test_only_entries_with_the_same_in_common_go_together_and_none_is_forgotten() -> None:
    service = Service()
    one = line(service)
    doing = [one.do(entry, 1, float("inf"), common) for entry, common in (("a", 1), ("b", 2), ("c", 1), ("d", 2))]
    await asyncio.gather(*doing)
    assert service.asked == [["a", "c"], ["b", "d"]]


async def test_a_line_in_order_has_one_call_at_a_time_and_asks_for_nothing_again() -> None:
    service = Service(lambda _: {1: Refusal(ThrottledError("slowly"), True)})
    service.gate.clear()
    doing = asyncio.create_task(all_of(line(service, ordered=True), list("abcdefg")))
    await asyncio.sleep(0.01)
    assert service.asked == [["a", "b", "c"]]
    service.gate.set()
    outcomes = await doing
    assert service.most_at_once == 1
    assert [entry for call in service.asked for entry in call] == list("abcdefg")
    assert [type(each) for each in outcomes].count(ThrottledError) == 2
    service = Service()
    service.gate.clear()
    doing = asyncio.create_task(all_of(line(service), list("abcdefg")))
    await asyncio.sleep(0.01)
    assert service.most_at_once == 2, "the seventh alone is not worth a call yet"
    service.gate.set()
    await doing


async def test_what_is_late_is_not_asked_for() -> None:
    service = Service()
    (outcome,) = await all_of(line(service), ["a"], until=asyncio.get_running_loop().time())
    assert isinstance(outcome, LeaseLostError)
    assert service.asked == []


async def test_entries_that_are_refused_for_now_are_asked_for_again_and_the_others_are_not() -> None:
    service = Service(
        in_turn(
            lambda _: {
                0: Refusal(ThrottledError("slowly"), True),
                1: Refusal(ConnectionLostError("for good"), False),
            },
            nothing,
        )
    )
    outcomes = await all_of(line(service), ["a", "b", "c"])
    assert [type(each) for each in outcomes] == [type(None), ConnectionLostError, type(None)]
    assert service.asked == [["a", "b", "c"], ["a"]]


async def test_a_call_that_is_refused_for_now_is_repeated_for_those_alone_that_have_more_time() -> None:
    service = Service(in_turn(ThrottledError("slowly"), nothing))
    one = line(service)
    now = asyncio.get_running_loop().time()
    outcomes = await asyncio.gather(one.do("a", 1, now + 1), one.do("b", 1, now + 9), return_exceptions=True)
    assert [type(each) for each in outcomes] == [ThrottledError, type(None)]
    assert service.asked == [["a", "b"], ["b"]]


async def test_what_nobody_can_know_is_not_repeated_and_each_is_told_by_an_error_of_its_own() -> None:
    service = Service(in_turn(ConnectionLostError("gone")))
    first, second = await all_of(line(service), ["a", "b"])
    assert (str(first), str(second)) == ("gone", "gone")
    assert first is not second
    assert len(service.asked) == 1


async def test_of_entries_that_are_refused_together_each_is_tried_alone() -> None:
    def answer(jobs: Sequence[Job]) -> Mapping[int, Refusal]:
        if any(job.entry == "large" for job in jobs):
            raise MessageTooLargeError("?", 0, 0)
        return {}

    service = Service(answer)
    outcomes = await all_of(line(service), ["a", "large", "b"])
    assert [type(each) for each in outcomes] == [type(None), MessageTooLargeError, type(None)]
    assert "a message of 5 bytes for queue 'work'" in str(outcomes[1])


async def test_a_queue_that_is_not_there_is_forgotten() -> None:
    forgotten: list[str] = []
    service = Service(in_turn(QueueNotFoundError("work")))
    (outcome,) = await all_of(line(service, forgotten), ["a"])
    assert isinstance(outcome, QueueNotFoundError)
    assert forgotten == ["work"]


async def test_whoever_is_cancelled_does_not_stop_what_is_under_way() -> None:
    service = Service()
    one = line(service)
    service.gate.clear()
    doing = asyncio.create_task(one.do("a", 1, float("inf")))
    other = asyncio.create_task(one.do("b", 1, float("inf")))
    await asyncio.sleep(0.01)
    doing.cancel()
    await asyncio.wait([doing])
    service.gate.set()
    await other
    assert service.asked == [["a", "b"]]


async def test_parcels_of_several_lines_are_sent_together_and_those_that_failed_are_named() -> None:
    good, bad = Service(), Service(in_turn(QueueNotFoundError("lost")))
    lines = line(good), line(bad)
    parcels = [Parcel(lines[number % 2], str(number), 1) for number in range(4)]
    with pytest.raises(PartialSendError) as caught:
        await send(parcels)
    assert sorted(caught.value.failed) == [1, 3]
    with pytest.raises(QueueNotFoundError):
        await send(parcels[1::2])
    assert (good.asked, bad.asked) == ([["0", "2"]], [["1", "3"], ["1", "3"]])
