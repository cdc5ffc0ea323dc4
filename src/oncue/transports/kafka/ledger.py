"""What a consumer knows of one partition, and how that is written beside the committed offset. Pure.

Kafka remembers one number for a group and a partition. Here it is the offset of the first message that is not done. What was
begun behind it is written as text beside that number: `next`, up to which messages were ever handed out, and each one below it
that is not done, with its attempts. All others below `next` are done. So messages may be finished in any order.
"""

from __future__ import annotations

import base64
import zlib
from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from oncue.transports.kafka.codec import Received, decode
from oncue.transports.stages import SUSPECT

if TYPE_CHECKING:
    from oncue.transports.kafka.lease import KafkaLease

MOST = 3000
"""So many may be begun and not done in one partition: what is written of them fits into what Kafka keeps (4096 bytes)."""
_PLAIN = 1000
_ATTEMPTS = 100
_VERSION = "1"


class Stage(IntEnum):
    WAITING = 0  # in line, or not read yet
    TAKEN = 1  # for this consumer; nobody has received it yet
    HELD = 2
    SETTLING = 3
    OVER = 4


class Entry:
    """A message that was begun, or will be next."""

    __slots__ = ("attempts", "due", "lease", "ledger", "lent", "lost", "offset", "received", "stage")

    def __init__(self, ledger: Ledger, offset: int, attempts: int = 0, lost: int = 0, due: float = 0.0) -> None:
        self.ledger = ledger
        self.offset = offset
        self.attempts = attempts
        self.lost = lost
        self.due = due
        self.stage = Stage.WAITING
        self.lent = False  # the consumer before had it
        self.received: Received | None = None
        self.lease: KafkaLease | None = None

    @property
    def suspect(self) -> bool:
        return self.lost >= SUSPECT

    @property
    def taken(self) -> bool:
        return Stage.TAKEN <= self.stage <= Stage.SETTLING


class Ledger:
    """One partition, for as long as it is ours."""

    def __init__(self, partition: int, incarnation: str, offset: int = 0) -> None:
        self.partition = partition
        self.incarnation = incarnation
        self.next = offset
        self.undone: dict[int, Entry] = {}  # by offset, ascending
        self.fresh: deque[Entry] = deque()  # read ahead, and not begun
        self.position = offset  # what is to be read next
        self.floor = 0  # what was below it and not held has been purged
        self.attempted: list[tuple[int, str]] = []  # what may be committed: what last was, and what was tried since
        self.gone = False  # it is somebody else's

    @property
    def watermark(self) -> int:
        return next(iter(self.undone), self.next)

    @property
    def held(self) -> bool:
        return any(entry.taken for entry in self.undone.values())

    def read(self, record: Any) -> Entry | None:
        """Take in a record; it is returned if it was begun before and waits for its turn again. One that is known stays as it is."""
        offset: int = record.offset
        known = offset < self.position
        self.position = max(self.position, offset + 1)
        if offset < self.next:
            entry = self.undone.get(offset)
            if entry is None or entry.received is not None:
                return None
            entry.received = decode(record)
            return entry
        if known:
            return None
        entry = Entry(self, offset)
        entry.received = decode(record)
        state = entry.received.state
        entry.attempts, entry.lost, entry.due = state.attempts, state.lost, state.due
        self.fresh.append(entry)
        return None

    def forget_unread(self, offset: int) -> bool:
        """Those below `offset` that could not be read are not there any more; whether there were any."""
        missing = [each for each in self.undone.values() if each.received is None and each.offset < offset]
        for entry in missing:
            del self.undone[entry.offset]
        return bool(missing)

    def begin(self, entry: Entry) -> None:
        """It is no longer fresh: from here on its state is written down."""
        self.undone[entry.offset] = entry
        self.next = entry.offset + 1

    def finish(self, entry: Entry) -> None:
        entry.stage = Stage.OVER
        self.undone.pop(entry.offset, None)

    def resume(self, entry: Entry) -> None:
        """What was finished is not."""
        entry.stage = Stage.WAITING
        later = [each for offset, each in self.undone.items() if offset > entry.offset]
        for each in later:
            del self.undone[each.offset]
        self.undone |= {each.offset: each for each in (entry, *later)}

    def skip(self, offset: int) -> None:
        """What is fresh below it is done, though nobody ever had it."""
        while self.fresh and self.fresh[0].offset < offset:
            self.next = self.fresh.popleft().offset + 1

    def attempt(self, state: tuple[int, str]) -> None:
        """This is about to be committed. Of many attempts the last are remembered, and what is committed for sure."""
        if state not in self.attempted[-1:]:
            self.attempted.append(state)
            del self.attempted[1:-_ATTEMPTS]

    def text(self) -> str:
        """What is written beside the watermark."""
        start = self.watermark
        plain = f"{self.next - start};{','.join(_runs(self.undone.values(), start))}"
        if len(plain) > _PLAIN:
            plain = "z" + base64.b85encode(zlib.compress(plain.encode(), 9)).decode()
        return f"{_VERSION};{self.incarnation};{self.floor};{plain}"


def _runs(entries: Iterable[Entry], start: int) -> Iterable[str]:
    """Neighbours of the same kind as `gap[+more][:attempts[/lost]][!][@due]`; `!` is one that is held."""
    at, last, more, kind, first = start, -1, 0, "", 0
    for entry in entries:
        now = _kind(entry)
        if kind == now and entry.offset == last + 1 and more >= 0 and last >= 0:
            more += 1
        else:
            if last >= 0:
                yield _run(first - at, more, kind)
                at = last
            first, more, kind = entry.offset, 0, now
        last = entry.offset
    if last >= 0:
        yield _run(first - at, more, kind)


def _run(gap: int, more: int, kind: str) -> str:
    return f"{gap or ''}{f'+{more}' if more else ''}{kind}"


def _kind(entry: Entry) -> str:
    text = f"{':' + str(entry.attempts) if entry.attempts != entry.taken else ''}{'/' + str(entry.lost) if entry.lost else ''}"
    return f"{text}{'!' if entry.taken else ''}{f'@{entry.due:.3f}' if entry.due else ''}"


def load(partition: int, incarnation: str, offset: int, text: str) -> Ledger:
    """What the consumer before left. Whatever it held was lost with it. Text of others, or of another queue, says nothing."""
    version, _, rest = text.partition(";")
    written, _, rest = rest.partition(";")
    if version != _VERSION:
        return Ledger(partition, incarnation, max(offset, 0))
    if written != incarnation:
        return Ledger(partition, incarnation)
    floor, _, rest = rest.partition(";")
    if rest.startswith("z"):
        rest = zlib.decompress(base64.b85decode(rest[1:])).decode()
    length, _, runs = rest.partition(";")
    ledger = Ledger(partition, incarnation, offset)
    ledger.floor = int(floor)
    ledger.next = offset + int(length)
    at = offset
    for run in runs.split(",") if int(length) else ():
        at = _load(ledger, at, run)
    return ledger


def _load(ledger: Ledger, at: int, run: str) -> int:
    run, _, due = run.partition("@")
    taken = run.endswith("!")
    run = run.removesuffix("!")
    run, _, lost = run.partition("/")
    run, _, attempts = run.partition(":")
    gap, _, more = run.partition("+")
    first = at + int(gap or 0)
    for offset in range(first, first + int(more or 0) + 1):
        entry = Entry(ledger, offset, int(attempts or taken), int(lost or 0) + taken, float(due or 0))
        entry.lent = taken
        ledger.undone[offset] = entry
    return first + int(more or 0)
