"""When to try again: exponential back-off with jitter and a cap, and errors that are never retried."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.failure import Failure
from oncue.core.message import LONGEST_DELAY
from oncue.core.outcome import Dead, Retry
from oncue.core.times import finite, shown


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how soon a failed message is tried again.

    max_attempts: attempts in all, the first included; 1 means no retry.
    base, factor, cap: the wait after attempt n is `min(cap, base * factor ** (n - 1))` seconds; none is over ten years.
    jitter: the part of each wait that is random, 0 to 1: the wait is shortened by up to this fraction, so that messages
        that failed together do not come back together.
    never: error types, or their names, that are dead-lettered at once; a base class stands for all that derive from it.
    """

    max_attempts: int = 3
    base: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.5
    never: Collection[type[BaseException] | str] = ()

    def __post_init__(self) -> None:
        faults = [
            f"retry.{name} is {shown(getattr(self, name))}, expected {expected}"
            for name, good, expected in (
                ("max_attempts", _is_whole(self.max_attempts) and self.max_attempts >= 1, "a whole number, 1 or more"),
                ("base", _is_within(self.base, 0, math.inf), "0 or more seconds"),
                ("factor", _is_within(self.factor, 1, math.inf), "1 or more"),
                ("cap", _is_within(self.cap, 0, LONGEST_DELAY), "0 or more seconds, at most ten years"),
                ("jitter", _is_within(self.jitter, 0, 1), "a number from 0 to 1"),
                ("never", _are_errors(self.never), "error types or their names, in a tuple"),
            )
            if not good
        ]
        if faults:
            raise InvalidValueError("; ".join(faults))
        names = frozenset(error if isinstance(error, str) else error.__name__ for error in self.never)
        msgspec.structs.force_setattr(self, "never", names)

    def decide(self, attempt: int, failure: Failure, *, uniform: float | None = None) -> Retry | Dead:
        """What follows a failed attempt (1 is the first): a `Retry` with its delay filled in, or `Dead`.

        A failure's own `retry_after` is taken as it is, without cap or jitter, but for ten years, which no wait exceeds.
        `uniform`, from 0 to 1, stands in for the random number. Pure but for that number; never raises.
        """
        never = not frozenset((failure.type, *failure.bases)).isdisjoint(self.never)
        if failure.final or attempt >= self.max_attempts or never:
            return Dead(failure)
        if failure.retry_after is not None:
            return Retry(failure, min(failure.retry_after, LONGEST_DELAY))
        chance = random.random() if uniform is None else uniform
        return Retry(failure, self.backoff(attempt) * (1.0 - self.jitter * chance))

    def backoff(self, attempt: int) -> float:
        """The longest wait after attempt `attempt`, in seconds."""
        try:
            return min(self.cap, self.base * float(self.factor) ** (attempt - 1))
        except OverflowError:
            return self.cap if self.base else 0.0


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_within(value: object, least: float, most: float) -> bool:
    number = finite(value)
    return number is not None and least <= number <= most


def _are_errors(never: object) -> bool:
    return (
        isinstance(never, Collection)
        and not isinstance(never, str)
        and all(
            isinstance(error, str) or (isinstance(error, type) and issubclass(error, BaseException)) for error in never
        )
    )
