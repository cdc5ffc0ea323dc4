"""All replicas of one actor: as many as are wanted, replaced when their code or manifest has changed."""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable, Coroutine
from typing import Any

from oncue.local.plan import Plan
from oncue.local.replica import Replica
from oncue.local.scaling import Scale
from oncue.local.state import ActorReport
from oncue.local.tally import Count
from oncue.transports.base import Depth

Make = Callable[[Plan, int], Replica]
Start = Callable[[Coroutine[Any, Any, None]], Task[None]]

_POLL = 1.0
"""Seconds between looks at the depth for an actor that has replicas; one that has none is looked after all the time."""


class Group:
    """The replicas of one actor. `make` makes one with a number of its own, `start` gives its run an owner."""

    def __init__(self, plan: Plan, queue: str, make: Make, start: Start) -> None:
        self.plan = plan
        self.queue = queue
        self.depth = Depth(None, None, None)
        self.wanted = 0
        self._scale = Scale(plan.scaling, plan.replicas)
        self._make = make
        self._start = start
        self._replicas: dict[Replica, Task[None]] = {}
        self._leaving: dict[Replica, Task[None]] = {}
        self._next = 0.0
        self._closed = False

    def due(self, now: float) -> bool:
        """Whether the depth of the queue has to be looked at now."""
        return self._scale.elastic and not self._closed and (not self.wanted or now >= self._next)

    def scale(self, now: float, depth: Depth) -> None:
        """Have as many replicas as the depth asks for."""
        self.depth = depth
        self._next = now + _POLL
        waiting = None if depth.ready is None else depth.ready + (depth.leased or 0)
        self._resize(self._scale.wanted(waiting, now))

    def begin(self) -> None:
        """Start what does not depend on the depth."""
        self._resize(self.plan.replicas if not self._scale.elastic else self.plan.scaling.least)

    def renew(self, plan: Plan) -> None:
        """Replace every replica by a new one; what the old ones have begun they finish."""
        if plan.scaling != self.plan.scaling or plan.replicas != self.plan.replicas:
            self._scale = Scale(plan.scaling, plan.replicas)
        self.plan = plan
        count = len(self._replicas)
        for replica in list(self._replicas):
            self._retire(replica)
        self._resize(count if self._scale.elastic else plan.replicas)

    async def end(self) -> None:
        """Let all replicas finish what they have begun, within the grace period, and return when they are gone."""
        self._closed = True
        for replica in list(self._replicas):
            self._retire(replica)
        if self._leaving:
            await asyncio.wait(list(self._leaving.values()))

    def now(self) -> None:
        """Have all replicas give back at once what they have begun."""
        self._closed = True
        for replica in [*self._replicas, *self._leaving]:
            replica.stop.now()

    def report(self, count: Count | None) -> ActorReport:
        """How it is at this moment; `count` is what became of its messages, None where nobody counts."""
        failing = next((each for each in self._replicas if each.state == "failing"), None)
        return ActorReport(
            name=self.plan.name,
            state=self._state(),
            replicas=sum(each.state == "running" for each in self._replicas),
            wanted=len(self._replicas),
            ready=self.depth.ready,
            leased=self.depth.leased,
            delayed=self.depth.delayed,
            done=count.done if count is not None else None,
            errors=count.errors if count is not None else None,
            error=failing.runtime.error if failing is not None else count.error if count is not None else "",
        )

    def _state(self) -> str:
        states = {each.state for each in self._replicas}
        for state in ("failing", "starting", "running"):
            if state in states:
                return state
        return "stopping" if self._leaving else "idle"

    def _resize(self, count: int) -> None:
        if self._closed:
            return
        self.wanted = count
        while len(self._replicas) < count:
            used = {each.number for each in self._replicas}
            replica = self._make(self.plan, next(number for number in range(1, count + 1) if number not in used))
            self._replicas[replica] = self._start(self._run(replica))
        for replica in list(self._replicas)[count:]:
            self._retire(replica)

    def _retire(self, replica: Replica) -> None:
        replica.stop.gently(replica.plan.grace)
        self._leaving[replica] = self._replicas.pop(replica)

    async def _run(self, replica: Replica) -> None:
        try:
            await replica.run()
        finally:
            self._leaving.pop(replica, None)
