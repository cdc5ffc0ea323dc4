"""In which order messages of a queue are taken: those that came back, then new ones of each partition in turn. Does no input.

In a queue that keeps an order each key has a lane, of which only the first message is ever in line.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from oncue.transports.kafka.ledger import MOST, Entry, Ledger, Stage

_Lane = tuple[int, str | None]


class Line:
    """`ready` is called when something may be taken that could not before."""

    def __init__(self, loop: AbstractEventLoop, *, fifo: bool, ready: Callable[[], None]) -> None:
        self._loop = loop
        self._fifo = fifo
        self._on_ready = ready
        self._line: deque[Entry] = deque()
        self._lanes: dict[_Lane, deque[Entry]] = {}
        self._later: list[tuple[float, int, Entry]] = []
        self._timer: TimerHandle | None = None
        self._turn = 0
        self._count = 0

    def put(self, entry: Entry, *, front: bool = False) -> None:
        """It waits for its turn, for the first time or once more."""
        if self._fifo:
            lane = self._lanes.setdefault(_lane(entry), deque())
            if entry not in lane:
                lane.append(entry)
            if lane[0] is not entry:
                return
        left = entry.due - time.time() if entry.due else 0.0
        if left > 0:
            self._count += 1
            heappush(self._later, (entry.due, self._count, entry))
            self._set_timer()
        elif front:
            self._line.appendleft(entry)
        else:
            self._line.append(entry)

    def finished(self, entry: Entry) -> None:
        """The next one of its key may go."""
        if self._fifo:
            lane = self._lanes.get(_lane(entry))
            if lane is None or entry not in lane:
                return
            was_first = lane[0] is entry
            lane.remove(entry)
            if not lane:
                del self._lanes[_lane(entry)]
            elif was_first:
                self.put(lane[0])

    def resume(self, entry: Entry) -> None:
        """What was finished is not: those of its key have to wait for it again."""
        if self._fifo:
            self._lanes.setdefault(_lane(entry), deque()).appendleft(entry)

    def forget(self, ledger: Ledger) -> None:
        """Everything of this partition is somebody else's."""
        self._line = deque(entry for entry in self._line if entry.ledger is not ledger)
        self._lanes = {name: lane for name, lane in self._lanes.items() if name[0] != ledger.partition}

    def take(self, room: int, alone: int, ledgers: Sequence[Ledger]) -> list[Entry]:
        """At most `room` messages, and `alone` of them that may be what ends its consumers."""
        taken: list[Entry] = []
        left: list[Entry] = []
        while self._line and len(taken) < room:
            entry = self._line.popleft()
            if entry.stage is not Stage.WAITING or entry.ledger.gone or not self._first(entry):
                continue
            if entry.ledger not in ledgers or (entry.suspect and alone <= 0):
                left.append(entry)
                continue
            alone -= entry.suspect
            entry.due = 0.0
            entry.stage = Stage.TAKEN
            taken.append(entry)
        self._line.extendleft(reversed(left))
        alone = self._take_new(taken, room, alone, ledgers)
        return taken

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _first(self, entry: Entry) -> bool:
        return not self._fifo or self._lanes[_lane(entry)][0] is entry

    def _take_new(self, taken: list[Entry], room: int, alone: int, ledgers: Sequence[Ledger]) -> int:
        lanes = [each for each in ledgers if each.fresh and len(each.undone) < MOST]
        self._turn += 1
        while lanes and len(taken) < room:
            ledger = lanes[self._turn % len(lanes)]
            share = max(1, (room - len(taken)) // len(lanes))
            while share and ledger.fresh:
                entry = ledger.fresh.popleft()
                ledger.begin(entry)
                share -= 1
                if entry.suspect and alone <= 0:
                    self._line.append(entry)
                else:
                    alone -= entry.suspect
                    taken.append(entry)
            lanes.remove(ledger)
        return alone

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            self._timer = self._loop.call_later(max(0.0, self._later[0][0] - time.time()), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        now = time.time()
        while self._later and self._later[0][0] <= now:
            entry = heappop(self._later)[2]
            if entry.stage is Stage.WAITING and not entry.ledger.gone:
                self._line.append(entry)
        self._set_timer()
        self._on_ready()


def _lane(entry: Entry) -> _Lane:
    assert entry.received is not None
    return entry.ledger.partition, entry.received.message.key
