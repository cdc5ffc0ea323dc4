"""Counts every message of a campaign: what was acknowledged, what landed, what died; and says what does not add up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from .app import ITEMS, dies, fans_out

SHOWN = 20


class Session:
    """What one sender sent, by number."""

    def __init__(self) -> None:
        self.acknowledged: set[int] = set()
        self.last = -1
        self.landed: dict[int, list[int]] = {}
        self.dead: dict[int, int] = {}

    def acknowledge(self, number: int) -> None:
        self.acknowledged.add(number)
        self.last = max(self.last, number)


class Ledger:
    """
    in_flight: how many messages a sender that was killed may have stored without having heard of it.
    once: whether nothing may come twice. Else `twice` counts what came too often.
    """

    def __init__(self, in_flight: int = 50, *, once: bool = True) -> None:
        self.in_flight = in_flight
        self.twice = 0
        self._once = once
        self.sessions: dict[int, Session] = {}
        self.strange: list[str] = []

    def acknowledge(self, session: int, number: int) -> None:
        """A sender was told that this message is stored."""
        self._session(session).acknowledge(number)

    def land(self, note: list[int]) -> None:
        """A message came to the end of its route."""
        session, number, item = note
        found = self._session(session).landed.setdefault(number, [0] * ITEMS)
        if not 0 <= item < (ITEMS if fans_out(number) else 1) or dies(number):
            self.strange.append(f"invented: item {item} of message {number} of sender {session}")
            return
        found[item] += 1
        if found[item] > 1:
            self._doubled(f"item {item} of message {number} of sender {session} landed {found[item]} times")

    def die(self, note: list[int]) -> None:
        """A message came to the dead letters."""
        session, number, _ = note
        dead = self._session(session).dead
        dead[number] = dead.get(number, 0) + 1
        if not dies(number):
            self.strange.append(f"set aside though it is good: message {number} of sender {session}")
        elif dead[number] > 1:
            self._doubled(f"message {number} of sender {session} is {dead[number]} dead letters")

    def faults(self) -> Iterator[str]:
        """Everything that is wrong when nothing is under way any more."""
        yield from self.strange
        for name, session in self.sessions.items():
            last = session.last + 2 * self.in_flight
            for number in session.landed.keys() | session.dead.keys():
                if not 0 <= number <= last:
                    yield f"invented: message {number} of sender {name}, who did not get that far"
            for number in session.acknowledged | session.landed.keys() | session.dead.keys():
                yield from self._missing(name, session, number)

    def _missing(self, name: int, session: Session, number: int) -> Iterator[str]:
        if dies(number):
            if not session.dead.get(number):
                yield f"lost: message {number} of sender {name} should be a dead letter"
            return
        landed = session.landed.get(number, [0] * ITEMS)
        for item in range(ITEMS if fans_out(number) else 1):
            if not landed[item]:
                yield f"lost: item {item} of message {number} of sender {name}"

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many were acknowledged, landed and died."""
        sessions = self.sessions.values()
        return (
            sum(len(session.acknowledged) for session in sessions),
            sum(sum(items) for session in sessions for items in session.landed.values()),
            sum(sum(session.dead.values()) for session in sessions),
        )

    def _doubled(self, what: str) -> None:
        self.twice += 1
        if self._once:
            self.strange.append(f"doubled: {what}")

    def _session(self, name: int) -> Session:
        return self.sessions.setdefault(name, Session())


def shown(faults: Iterator[str]) -> list[str]:
    """The first faults, and how many more there are."""
    first = list(islice(faults, SHOWN))
    more = sum(1 for _ in faults)
    return [*first, f"and {more} more"] if more else first
