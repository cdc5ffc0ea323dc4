"""Holds what was sent against every end that was reached, and says what does not add up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from oncue.core.failure import PROCESSING_ERROR

from .handlers import ITEMS, fans_out, is_bad, is_poison, is_shaky

Place = Literal["happy", "error", "dead"]
PLACES: Sequence[Place] = ("happy", "error", "dead")
UNBORN = -1
"""The item of a message that has not passed its first actor."""


class End(msgspec.Struct, frozen=True):
    """A message that came to the end of its route: where, with which id, and the error's code if it came to an error."""

    place: Place
    id: str
    note: tuple[int, int, int]
    code: str = ""


def may_fail(number: int) -> bool:
    """Whether its handlers may be why it failed."""
    return is_bad(number) or is_shaky(number) or is_poison(number)


def faults(sent: set[tuple[int, int]], ends: Iterable[End]) -> Iterator[str]:
    """Everything that is wrong when nothing is under way any more. `sent` has the sender and the number of each message."""
    found: dict[tuple[int, int], list[End]] = defaultdict(list)
    for end in ends:
        found[end.note[:2]].append(end)
    for name in found.keys() - sent:
        yield f"invented: {name}: {found[name]}"
    for name in sorted(sent):
        yield from _faults_of(name[1], found.get(name, []))


def _faults_of(number: int, ends: Sequence[End]) -> Iterator[str]:
    items: dict[int, list[End]] = defaultdict(list)
    for end in ends:
        items[end.note[2]].append(end)
    if set(items) != {UNBORN}:
        wanted = set(range(ITEMS if fans_out(number) else 1))
        for item in wanted - items.keys():
            yield f"lost: item {item} of {number}, which came to {ends}"
        for item in items.keys() - wanted:
            yield f"invented: item {item} of {number}: {items[item]}"
    for item, reached in items.items():
        places = Counter(end.place for end in reached)
        if places not in (Counter(happy=1), Counter(error=1, dead=1)):
            yield f"not ended once: item {item} of {number}: {reached}"
        elif len({end.id for end in reached}) > 1:
            yield f"not of one id: {reached}"
        elif (is_bad(number) or is_poison(number)) and places["happy"]:
            yield f"good though it is bad: {reached}"
        elif any(end.code == PROCESSING_ERROR for end in reached) and not (is_bad(number) or is_shaky(number)):
            yield f"failed though its handler did not: {reached}"
        elif item == UNBORN and places["happy"]:
            yield f"ended before its first actor: {reached}"


def results_faults(ends: Iterable[End], results: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What is wrong with the kept results, of which only id and status count."""
    wanted = {(end.id, "succeeded" if end.place == "happy" else "failed") for end in ends if end.place != "dead"}
    kept = Counter(results)
    yield from (f"no result is kept of {each}" for each in sorted(wanted - kept.keys()))
    yield from (f"a result of nothing that ended: {each}" for each in sorted(kept.keys() - wanted))
    yield from (f"kept {count} times: {each}" for each, count in kept.items() if count > 1)
