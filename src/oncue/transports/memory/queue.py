"""One queue in memory: which message is next, which are leased, delayed or too old."""

from __future__ import annotations

import math
from asyncio import TimerHandle
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from oncue.core.errors import QueueNotFoundError
from oncue.core.message import Message
from oncue.transports.base import Depth, QueueSpec
from oncue.transports.memory.subscription import MemoryLease

if TYPE_CHECKING:
    from oncue.transports.memory import MemoryStore
    from oncue.transports.memory.subscription import MemorySubscription

SUSPECT = 2
"""A message whose leases ran out this often may be what ends its consumers."""


class State(Enum):
    READY = auto()
    LEASED = auto()
    DELAYED = auto()
    GONE = auto()


class Entry:
    """One stored message. `claims` is how often it was handed out and not given back, `lapses` how many leases ran out."""

    __slots__ = ("claims", "due", "kept_until", "lapses", "lease", "message", "order", "sent", "state")

    def __init__(self, message: Message, order: int, sent: float, kept_until: float) -> None:
        self.message = message
        self.order = order
        self.sent = sent
        self.kept_until = kept_until
        self.state = State.READY
        self.due = 0.0
        self.claims = 0
        self.lapses = 0
        self.lease: MemoryLease | None = None


class MemoryQueue:
    """One queue. In a fifo queue only the first message of each key is on offer; the others stand behind it in its lane."""

    lease_type: ClassVar[type[MemoryLease]] = MemoryLease

    def __init__(self, store: MemoryStore, spec: QueueSpec) -> None:
        self.store = store
        self.spec = spec
        self.subscriptions: set[MemorySubscription] = set()
        self.hungry: dict[MemorySubscription, None] = {}
        self._entries: dict[int, Entry] = {}
        self._ready: deque[Entry] = deque()
        self._suspects: deque[Entry] = deque()
        self._delayed: list[tuple[float, int, Entry]] = []
        self._delayed_count = 0
        self._lanes: dict[str | None, deque[Entry]] = {}
        # Leases of one length end in the order in which they began, so each length needs no more than an ordered dict.
        self._leases: dict[float, dict[MemoryLease, None]] = {spec.lease: {}}
        self._next = math.inf
        self._timer: TimerHandle | None = None

    def add(self, message: Message, delay: float) -> None:
        """Store a message; the caller dispatches when it has stored all."""
        now = self.store.time()
        kept_until = math.inf if self.spec.retention is None else now + delay + self.spec.retention
        entry = Entry(message, self.store.next_order(), now, kept_until)
        self._entries[entry.order] = entry
        if self.spec.fifo:
            self._lanes.setdefault(message.key, deque()).append(entry)
        if delay > 0:
            self._postpone(entry, now + delay)
        else:
            self._offer(entry)
        if kept_until < self._next:
            self._expect(kept_until)

    def claim(self, subscription: MemorySubscription) -> MemoryLease | None:
        """The next message as a lease of `subscription`, or None."""
        entry = None
        if self._suspects and not subscription.suspects:
            entry = _pop(self._suspects)
        if entry is None:
            entry = _pop(self._ready)
        if entry is None:
            return None
        entry.state = State.LEASED
        entry.claims += 1
        lease = self.lease_type(self, subscription, entry, suspect=entry.lapses >= SUSPECT)
        entry.lease = lease
        subscription.take(lease)
        self.prolong(lease, self.spec.lease)
        return lease

    def prolong(self, lease: MemoryLease, length: float) -> None:
        """Let `lease` end `length` seconds from now."""
        self._forget_end(lease)
        lease.until = self.store.time() + length
        lease.length = length
        self._leases.setdefault(length, {})[lease] = None
        if lease.until < self._next:
            self._expect(lease.until)

    def end(self, lease: MemoryLease) -> None:
        """Take the message from `lease`, which no longer counts against its subscription."""
        self._forget_end(lease)
        lease.entry.lease = None
        lease.subscription.give(lease)

    def remove(self, entry: Entry) -> None:
        """The message is finished, or too old."""
        entry.state = State.GONE
        del self._entries[entry.order]
        if self.spec.fifo:
            key = entry.message.key
            lane = self._lanes[key]
            was_first = lane[0] is entry
            lane.remove(entry)
            if not lane:
                del self._lanes[key]
            elif was_first and lane[0].state is State.READY:
                self._offer(lane[0])

    def put_back(self, entries: Iterable[Entry]) -> None:
        """What is no longer leased is next in turn again, in its old order."""
        for entry in sorted(entries, key=_order, reverse=True):
            entry.state = State.READY
            self._offer(entry, front=True)

    def nack(self, entry: Entry, delay: float) -> None:
        if delay > 0:
            self._postpone(entry, self.store.time() + delay)
        else:
            entry.state = State.READY
            self._offer(entry)

    def dispatch(self) -> None:
        """Hand what is on offer to those who wait for it, each subscription in turn."""
        while self.hungry and (self._ready or self._suspects):
            for subscription in self.hungry:
                waiter = subscription.first_waiter()
                if waiter is None:
                    break
                lease = self.claim(subscription)
                if lease is not None:
                    waiter.set_result(lease)
                    break
            else:
                return
            self.hungry.pop(subscription, None)
            subscription.update_hunger(self)

    def catch_up(self, at_least: float = 0.0) -> None:
        """Do what has come due by now: end leases, offer delayed messages, drop old ones."""
        now = max(self.store.time(), at_least)
        if now < self._next:
            return
        self._end_leases(now)
        while self._delayed and self._delayed[0][0] <= now:
            _, _, entry = heappop(self._delayed)
            if entry.state is State.DELAYED:
                self._delayed_count -= 1
                entry.state = State.READY
                self._offer(entry)
        retention_ends = self._drop_old(now)
        self.stop()
        self._expect(min(self._lease_ends(), self._delayed[0][0] if self._delayed else math.inf, retention_ends))
        self.dispatch()

    def stop(self) -> None:
        """Forget the timer; `catch_up` sets it again."""
        self._next = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def start(self) -> None:
        """Set the timer anew, after `stop` or in another event loop."""
        self.stop()
        self._next = 0.0
        self.catch_up()

    def depth(self) -> Depth:
        leased = sum(map(len, self._leases.values()))
        return Depth(len(self._entries) - leased - self._delayed_count, leased, self._delayed_count)

    def oldest(self, limit: int) -> Sequence[Message]:
        return [entry.message for entry in islice(self._entries.values(), max(0, limit))]

    def purge(self) -> int:
        dropped = [entry for entry in self._entries.values() if entry.state is not State.LEASED]
        for entry in dropped:
            entry.state = State.GONE
            del self._entries[entry.order]
        self._ready.clear()
        self._suspects.clear()
        self._delayed.clear()
        self._delayed_count = 0
        if self.spec.fifo:
            self._lanes = {entry.message.key: deque([entry]) for entry in self._entries.values()}
        return len(dropped)

    def delete(self) -> None:
        """End all leases and tell those who wait; the queue is not used any more."""
        self.stop()
        for lease in [lease for term in self._leases.values() for lease in term]:
            self.end(lease)
        for subscription in list(self.subscriptions):
            subscription.fail(QueueNotFoundError(self.spec.name))

    def _offer(self, entry: Entry, *, front: bool = False) -> None:
        if self.spec.fifo and self._lanes[entry.message.key][0] is not entry:
            return
        line = self._suspects if entry.lapses >= SUSPECT else self._ready
        if front:
            line.appendleft(entry)
        else:
            line.append(entry)

    def _postpone(self, entry: Entry, due: float) -> None:
        entry.state = State.DELAYED
        entry.due = due
        self._delayed_count += 1
        heappush(self._delayed, (due, entry.order, entry))
        if due < self._next:
            self._expect(due)

    def _end_leases(self, now: float) -> None:
        over = []
        for term in self._leases.values():
            for lease in term:
                if lease.until > now:
                    break
                over.append(lease)
        for lease in over:
            self.end(lease)
            lease.entry.lapses += 1
        self.put_back(lease.entry for lease in over)

    def _forget_end(self, lease: MemoryLease) -> None:
        ends = self._leases.get(lease.length, {})
        ends.pop(lease, None)
        if not ends and lease.length != self.spec.lease:
            self._leases.pop(lease.length, None)

    def _lease_ends(self) -> float:
        return min((next(iter(term)).until for term in self._leases.values() if term), default=math.inf)

    def _drop_old(self, now: float) -> float:
        """Drop what was kept long enough; when to look again."""
        if self.spec.retention is None:
            return math.inf
        again = math.inf
        old = []
        for entry in self._entries.values():
            if entry.kept_until > now:
                again = min(again, entry.kept_until)
                if entry.sent + self.spec.retention > now:
                    break
            elif entry.state is State.READY:
                old.append(entry)
        for entry in old:
            self.remove(entry)
        return again

    def _expect(self, when: float) -> None:
        if when < self._next:
            self._next = when
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.store.call_at(when, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.catch_up(self._next)  # a loop may call a moment early, by the resolution of its clock


def _order(entry: Entry) -> int:
    return entry.order


def _pop(line: deque[Entry]) -> Entry | None:
    while line:
        entry = line.popleft()
        if entry.state is State.READY:
            return entry
    return None
