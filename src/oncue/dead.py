"""Dead letters, written once over the transport contract: how one is made, listed, redriven and discarded.

A dead letter is the message as it was, body, id and key untouched, with headers that say why it was set aside. The dead
letters of queue `q` are the queue `q-dlq`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from oncue.core.errors import (
    InvalidValueError,
    LeaseLostError,
    MessageTooLargeError,
    QueueNotFoundError,
    TransportError,
)
from oncue.core.failure import Failure
from oncue.core.message import Message, Send, check_queue_name
from oncue.core.times import parse_timestamp, timestamp
from oncue.transports.base import Lease, QueueSpec, Subscription, Transport

SENT_AT = "oncue-sent-at"
"""The header with the moment at which a message was first sent; it survives retries, dead-lettering and redrive."""

DEAD_REASON = "oncue-dead-reason"
DEAD_TYPE = "oncue-dead-type"
DEAD_MESSAGE = "oncue-dead-message"
DEAD_TRACEBACK = "oncue-dead-traceback"
DEAD_ATTEMPTS = "oncue-dead-attempts"
DEAD_QUEUE = "oncue-dead-queue"
DEAD_FIRST = "oncue-dead-first"
DEAD_LAST = "oncue-dead-last"
DEAD_HEADERS = frozenset(
    {DEAD_REASON, DEAD_TYPE, DEAD_MESSAGE, DEAD_TRACEBACK, DEAD_ATTEMPTS, DEAD_QUEUE, DEAD_FIRST, DEAD_LAST}
)
"""What dead-lettering adds to the headers of a message, and redrive takes away."""

_SUFFIX = "-dlq"
_LONGEST_NAME = 256
_LONGEST_MESSAGE = 2048
_LONGEST_TRACEBACK = 8192

_WINDOW = 64
"""How many dead letters are settled at once, so that the transport can put them into one round trip."""
_IDLE = 1.0
_PATIENCE = 5
"""After this many times _IDLE seconds without a letter, what the depth still shows is taken to be somebody else's."""
_LAST_WORDS = 5.0
"""Seconds for which a sweep that is cancelled waits for what it has asked the transport to do."""
_LOOK = 1000
"""Letters that are looked at first where each look counts: rather once at many than at some of them several times."""
_SUSPECT = 2
"""A letter that was handed out more often may be one of those of which a subscription holds a single one."""


def dead_queue_name(queue: str) -> str:
    """The queue that holds the dead letters of `queue`."""
    return queue + _SUFFIX


def is_dead_queue(queue: str) -> bool:
    """Whether `queue` holds the dead letters of another queue."""
    return queue.endswith(_SUFFIX) and len(queue) > len(_SUFFIX)


def dead_letter(queue: str, message: Message, failure: Failure, attempts: int, now: datetime | None = None) -> Send:
    """The send that sets `message` of `queue` aside: the same message with the reason in its headers.

    Texts of the failure are cut to a bounded length, the traceback at its beginning, and freed of what cannot be
    written as UTF-8. Pure but for the clock when `now` is None; never raises.
    """
    last = timestamp(now)
    headers = {
        **message.headers,
        DEAD_REASON: _text(failure.code, _LONGEST_NAME),
        DEAD_TYPE: _text(failure.type, _LONGEST_NAME),
        DEAD_MESSAGE: _text(failure.message, _LONGEST_MESSAGE),
        DEAD_TRACEBACK: _text(failure.traceback, _LONGEST_TRACEBACK, keep_end=True),
        DEAD_ATTEMPTS: str(attempts),
        DEAD_QUEUE: queue,
        DEAD_FIRST: message.headers.get(SENT_AT) or last,
        DEAD_LAST: last,
    }
    return Send(dead_queue_name(queue), Message(message.body, message.id, headers, message.key))


def _text(text: str, longest: int, *, keep_end: bool = False) -> str:
    """`text` as valid text of at most `longest` bytes of UTF-8."""
    raw = text.replace("\0", "\ufffd").encode("utf-8", "replace")
    if len(raw) > longest:
        room = longest - len("…".encode())
        cut = raw[-room:] if keep_end else raw[:room]
        shown = cut.decode("utf-8", "ignore")
        return f"…{shown}" if keep_end else f"{shown}…"
    return raw.decode()


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was set aside. Fields whose header is absent or unreadable are empty, 0 or None."""

    stored: Message
    queue: str
    reason: str
    type: str
    message: str
    traceback: str
    attempts: int
    first: datetime | None
    last: datetime | None

    @classmethod
    def parse(cls, dead_queue: str, stored: Message) -> DeadLetter:
        """Read the headers of a message in `dead_queue`. Never raises: a foreign message is a dead letter without reason."""
        get = stored.headers.get
        attempts = get(DEAD_ATTEMPTS, "")
        return cls(
            stored=stored,
            queue=get(DEAD_QUEUE) or (dead_queue.removesuffix(_SUFFIX) if is_dead_queue(dead_queue) else ""),
            reason=get(DEAD_REASON, ""),
            type=get(DEAD_TYPE, ""),
            message=get(DEAD_MESSAGE, ""),
            traceback=get(DEAD_TRACEBACK, ""),
            attempts=int(attempts) if attempts.isascii() and attempts.isdigit() and len(attempts) < 10 else 0,
            first=parse_timestamp(get(DEAD_FIRST)),
            last=parse_timestamp(get(DEAD_LAST)),
        )

    @property
    def id(self) -> str:
        """The id of the message, which redrive keeps."""
        return self.stored.id

    @property
    def original(self) -> Message:
        """The message as it was before it was set aside."""
        headers = {name: value for name, value in self.stored.headers.items() if name not in DEAD_HEADERS}
        return Message(self.stored.body, self.stored.id, headers, self.stored.key)


class DeadFilter(msgspec.Struct, frozen=True):
    """Which dead letters are meant: all conditions that are set must hold.

    `ids` are message ids, `errors` names of error types, and `died_before` is the moment after which a letter is too young;
    a letter without a readable time is too young for any.
    """

    ids: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    died_before: datetime | None = None

    def __bool__(self) -> bool:
        """Whether any condition is set."""
        return bool(self.ids or self.errors or self.died_before)

    def matches(self, letter: DeadLetter) -> bool:
        """Whether `letter` is meant. Pure."""
        if self.ids and letter.id not in self.ids:
            return False
        if self.errors and letter.type not in self.errors:
            return False
        return self.died_before is None or (letter.last is not None and letter.last < self.died_before)


EVERY_LETTER = DeadFilter()


async def list_dead(
    transport: Transport, dead_queue: str, which: DeadFilter = EVERY_LETTER, limit: int = 100
) -> Sequence[DeadLetter]:
    """Up to `limit` dead letters that match, oldest first; whether a look counts or hides them, `features.peek` says.

    Safe to cancel. Raise `QueueNotFoundError` when there is no such queue.
    """
    window = limit if transport.features.peek else max(limit, _LOOK)
    while True:
        stored = await transport.peek(dead_queue, limit=window)
        letters = [
            letter for letter in (DeadLetter.parse(dead_queue, each) for each in stored) if which.matches(letter)
        ]
        if len(letters) >= limit or len(stored) < window:
            return letters[:limit]
        window *= 4


async def find_dead(transport: Transport, dead_queue: str, id: str) -> DeadLetter | None:
    """The oldest dead letter with this id, or None. Safe to cancel; raises as `list_dead`."""
    found = await list_dead(transport, dead_queue, DeadFilter(ids=frozenset({id})), 1)
    return found[0] if found else None


class Swept(msgspec.Struct, frozen=True):
    """What became of the dead letters: `count` went, `refused` maps the ids of those that had to stay to the reasons.

    `gave_up` says that there were more, which the transport did not hand out for some seconds.
    """

    count: int
    refused: Mapping[str, str]
    gave_up: bool = False


Progress = Callable[[int], None]
"""Called with the number of dead letters that have gone so far."""


async def redrive(
    transport: Transport,
    dead_queue: str,
    which: DeadFilter = EVERY_LETTER,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Put dead letters back into the queues they came from, with id, body and sending time, and no attempts used.

    Takes at most as many as were there at the start, so a letter that dies again meanwhile does not go round and round.
    Each one leaves the dead letters together with its arrival in its queue where the transport's acks are atomic, else
    after it. Cancelling it, or an error, loses none: what was not yet put back stays, uncounted. A first cancellation
    lets what is being settled end, for some seconds, so that `progress` has heard of all that went.
    What does not match is held meanwhile, or, where earlier sweeps were killed while they held it, delayed by one lease.
    `progress` must not raise.
    """
    return await _Sweep(transport, dead_queue, which, limit, progress, _put_back).run()


async def discard(
    transport: Transport,
    dead_queue: str,
    which: DeadFilter = EVERY_LETTER,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Delete dead letters for good; bounded and cancellable as `redrive` is."""
    return await _Sweep(transport, dead_queue, which, limit, progress, _drop).run()


async def _put_back(lease: Lease, letter: DeadLetter) -> None:
    await lease.ack(Send(check_queue_name(letter.queue), letter.original))


async def _drop(lease: Lease, _letter: DeadLetter) -> None:
    await lease.ack()


class _Sweep:
    """One pass over a dead queue: what matches goes; what does not is kept aside, so that it is not received again."""

    def __init__(
        self,
        transport: Transport,
        dead_queue: str,
        which: DeadFilter,
        limit: int | None,
        progress: Progress | None,
        go: Callable[[Lease, DeadLetter], Awaitable[None]],
    ) -> None:
        self._transport = transport
        self._queue = dead_queue
        self._which = which
        self._limit = limit
        self._progress = progress
        self._go = go
        now = datetime.now(UTC)
        self._started = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as exact as the headers
        self._taken: set[str] = set()
        self._matched = 0
        self._count = 0
        self._length = 0.0
        self._held: list[Lease] = []
        self._refused: dict[str, str] = {}
        self._gave_up = False
        self._settling: set[asyncio.Task[None]] = set()
        self._broken: TransportError | None = None

    async def run(self) -> Swept:
        present = (await self._transport.depth(self._queue)).ready
        wanted = [bound for bound in (present, None if self._which else self._limit) if bound is not None]
        window = min([_WINDOW, *wanted])
        if window > 0:
            self._length = await self._lease_length()
            async with self._transport.subscribe(self._queue, prefetch=window) as subscription:
                keeper = asyncio.create_task(self._keep())
                try:
                    await self._drain(subscription, present, window)
                finally:
                    keeper.cancel()
                    await asyncio.gather(keeper, return_exceptions=True)
        if self._broken is not None:
            raise self._broken
        return Swept(self._count, self._refused, self._gave_up)

    async def _lease_length(self) -> float:
        specs = await self._transport.queues()
        return next((spec.lease for spec in specs if spec.name == self._queue), QueueSpec(name=self._queue).lease)

    async def _drain(self, subscription: Subscription, present: int | None, window: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._hand_out(subscription, present, window, tasks)
                await _ended(self._settling)
            except asyncio.CancelledError:
                # What was asked for happens all the same, and the count should know of it.
                await _ended(self._settling, _LAST_WORDS)
                raise

    async def _hand_out(
        self, subscription: Subscription, present: int | None, window: int, tasks: asyncio.TaskGroup
    ) -> None:
        room = asyncio.Semaphore(window)
        received = 0
        while self._broken is None and received != present and self._matched != self._limit:
            await room.acquire()
            try:
                lease = await self._receive(subscription)
            except TransportError as error:
                self._broken = error
                return
            if lease is None:
                return
            received += 1
            letter = DeadLetter.parse(self._queue, lease.message)
            if self._which.matches(letter) and not self._died_again(letter, present):
                self._matched += 1
                self._taken.add(letter.id)
                task = tasks.create_task(self._settle(lease, letter, subscription, room, window))
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)
            else:
                await self._set_aside(lease, subscription, window)
                room.release()

    async def _receive(self, subscription: Subscription) -> Lease | None:
        """The next lease, or None when others have taken the rest, or nothing comes though there is more."""
        for _ in range(_PATIENCE):
            try:
                async with asyncio.timeout(_IDLE):
                    return await subscription.receive()
            except TimeoutError:
                if not (await self._transport.depth(self._queue)).ready:
                    return None
        self._gave_up = True
        return None

    def _died_again(self, letter: DeadLetter, present: int | None) -> bool:
        if letter.id not in self._taken:
            return False
        return present is None or (letter.last is not None and letter.last >= self._started)

    async def _set_aside(self, lease: Lease, subscription: Subscription, window: int) -> None:
        """Keep a letter that stays from being received again: held to the end, or else out of the way for a while."""
        if lease.attempt <= _SUSPECT:
            self._held.append(lease)
            subscription.resize(len(self._held) + window)
            return
        try:
            await lease.nack(delay=self._length)
        except LeaseLostError:
            return  # it comes again, to us or to somebody else
        except TransportError as error:
            self._broken = self._broken or error

    async def _settle(
        self, lease: Lease, letter: DeadLetter, subscription: Subscription, room: asyncio.Semaphore, window: int
    ) -> None:
        try:
            await self._go(lease, letter)
        except LeaseLostError:
            pass  # it is a dead letter still, or again, and another pass will meet it
        except (QueueNotFoundError, MessageTooLargeError, InvalidValueError) as error:
            self._refused[letter.id] = str(error)
            await self._set_aside(lease, subscription, window)
        except TransportError as error:
            self._broken = self._broken or error
        else:
            self._count += 1
            if self._progress is not None:
                self._progress(self._count)
        room.release()

    async def _keep(self) -> None:
        """Extend what is held, for as long as it runs."""
        while True:
            await asyncio.sleep(self._length / 3)
            held = self._held[:]
            results = await asyncio.gather(*(lease.extend(self._length) for lease in held), return_exceptions=True)
            lost = {
                id(lease) for lease, result in zip(held, results, strict=True) if isinstance(result, LeaseLostError)
            }
            self._held = [lease for lease in self._held if id(lease) not in lost]


async def _ended(tasks: set[asyncio.Task[None]], within: float | None = None) -> None:
    """Return when all of `tasks` have ended, or `within` seconds are over."""
    if tasks:
        await asyncio.wait(tasks, timeout=within)
