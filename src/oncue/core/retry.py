"""When to try again: exponential back-off with jitter and a cap, and errors that are never retried."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.failure import Failure
from oncue.core.outcome import Dead, Retry


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how soon a failed message is tried again.

    max_attempts: attempts in all, the first included; 1 means no retry.
    base, factor, cap: the wait after attempt n is `min(cap, base * factor ** (n - 1))` seconds.
    jitter: the part of each wait that is random, 0 to 1: the wait is shortened by up to this fraction, so that messages
        that failed together do not come back together.
    never: error types, or their names, that are dead-lettered at once; a base class stands for all that derive from it.
    """

    max_attempts: int = 3
    base: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.5
    never: Iterable[type[BaseException] | str] = ()

    def __post_init__(self) -> None:
        faults = [
            f"retry.{name} is {getattr(self, name)!r}, expected {expected}"
            for name, good, expected in (
                ("max_attempts", isinstance(self.max_attempts, int) and self.max_attempts >= 1, "1 or more"),
                ("base", _is_number(self.base) and self.base >= 0, "0 or more seconds"),
                ("factor", _is_number(self.factor) and self.factor >= 1, "1 or more"),
                ("cap", _is_number(self.cap) and self.cap >= 0, "0 or more seconds"),
                ("jitter", _is_number(self.jitter) and 0 <= self.jitter <= 1, "a number from 0 to 1"),
            )
            if not good
        ]
        if faults:
            raise InvalidValueError("; ".join(faults))
        names = frozenset(error if isinstance(error, str) else error.__name__ for error in self.never)
        msgspec.structs.force_setattr(self, "never", names)

    def decide(self, attempt: int, failure: Failure, *, uniform: float | None = None) -> Retry | Dead:
        """What follows a failed attempt (1 is the first): a `Retry` with its delay filled in, or `Dead`.

        A failure's own `retry_after` is taken as it is, without cap or jitter. `uniform`, from 0 to 1, stands in for the
        random number. Pure but for that number; never raises.
        """
        if failure.final or attempt >= self.max_attempts or not _disjoint(self.never, failure):
            return Dead(failure)
        if failure.retry_after is not None:
            return Retry(failure, failure.retry_after)
        chance = random.random() if uniform is None else uniform
        return Retry(failure, self.backoff(attempt) * (1.0 - self.jitter * chance))

    def backoff(self, attempt: int) -> float:
        """The longest wait after attempt `attempt`, in seconds."""
        try:
            return min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.cap


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _disjoint(never: Iterable[object], failure: Failure) -> bool:
    return isinstance(never, frozenset) and failure.type not in never and never.isdisjoint(failure.bases)
