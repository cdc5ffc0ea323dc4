"""Who watches an actor's messages without taking part: metrics, and the reports to a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

from oncue.middleware import Handler
from oncue.settle import OnDead
from oncue.workloads import Workload


class Observer(Protocol):
    """Each method wraps one place that messages pass, and changes nothing there."""

    def middleware(self, handler: Handler) -> Handler: ...
    def workload(self, workload: Workload) -> Workload: ...
    def on_dead(self, on_dead: OnDead) -> OnDead: ...


class Nobody:
    """Watches nothing; others may derive from it and watch some of it."""

    def middleware(self, handler: Handler) -> Handler:
        return handler

    def workload(self, workload: Workload) -> Workload:
        return workload

    def on_dead(self, on_dead: OnDead) -> OnDead:
        return on_dead


NOBODY = Nobody()


class Observers(Nobody):
    """Several, the first outermost."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(reversed(observers))

    def middleware(self, handler: Handler) -> Handler:
        return reduce(lambda inner, each: each.middleware(inner), self._observers, handler)

    def workload(self, workload: Workload) -> Workload:
        return reduce(lambda inner, each: each.workload(inner), self._observers, workload)

    def on_dead(self, on_dead: OnDead) -> OnDead:
        return reduce(lambda inner, each: each.on_dead(inner), self._observers, on_dead)
