"""Waiting for results: the queues that replies come to, and putting the branches of a fan-out together."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from asyncio import Future, Task
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import msgspec

from oncue.actors import branch_of
from oncue.core.envelope import Envelope, decode_envelope
from oncue.core.errors import (
    ActorFailedError,
    CallTimeoutError,
    ConnectionLostError,
    InvalidEnvelopeError,
    LeaseLostError,
    QueueNotFoundError,
    TransportClosedError,
    TransportError,
)
from oncue.core.message import Message, Send, check_delay
from oncue.core.retry import RetryPolicy
from oncue.core.times import format_duration
from oncue.ends import read_failure
from oncue.outgoing import CALL, FAILED, REPLY_TO
from oncue.transports.base import Lease, QueueSpec, Subscription, Transport

_log = logging.getLogger("oncue.calls")

REPLY_QUEUE = "oncue-reply-"
"""What the names of reply queues begin with; then come the moment they were made and a random part."""

FRESH = 6 * 3600.0
"""Seconds for which a reply queue is used for new calls. A program that lives longer makes a new one, so that an old queue
is one whose program is dead."""
STALE = 86400.0
"""Seconds after which a reply queue is taken to be left over."""
_RETENTION = 3600.0
_PREFETCH = 256
_BACK_OFF = RetryPolicy(max_attempts=1, base=0.05, factor=2.0, cap=5.0)

Deliver = Callable[[Send], Awaitable[None]]


class Replies:
    """The reply queues of one connected app: one for new calls, and older ones until their last call has ended."""

    def __init__(self, transport: Transport, *, clock: Callable[[], float] = time.time) -> None:
        self._transport = transport
        self._clock = clock
        self._making = asyncio.Lock()
        self._current: _Mailbox | None = None
        self._all: list[_Mailbox] = []

    async def call(
        self,
        send: Send,
        deliver: Deliver,
        actor: str,
        timeout: float | None,  # noqa: ASYNC109  # ends with an error of ours, which says what was waited for
    ) -> Any:
        """Send `send` by `deliver`, marked so that its result comes here, and return the result. Safe to cancel.

        Raise `ActorFailedError`, `CallTimeoutError` after `timeout` seconds, and whatever `deliver` raises.
        """
        if timeout is not None:
            check_delay(timeout)
        try:
            async with asyncio.timeout(timeout):
                mailbox = await self._mailbox()
                with _Waiting(mailbox) as waiting:
                    await deliver(_marked(send, mailbox.queue, waiting.token))
                    return await waiting.result
        except TimeoutError:
            raise CallTimeoutError(
                f"no result of actor {actor!r} for message {send.message.id!r} "
                f"within {format_duration(timeout or 0.0)}; the work itself goes on"
            ) from None

    async def close(self) -> None:
        """End all calls that still wait and delete the queues. May be called twice."""
        self._current = None
        while self._all:
            await self._all.pop().close()

    async def _mailbox(self) -> _Mailbox:
        async with self._making:
            current = self._current
            if current is None or current.ended or current.made + FRESH <= self._clock():
                first = not self._all
                fresh = _Mailbox(self._transport, self._clock())
                self._all.append(fresh)  # before it is there: a call that is cancelled now must not leave it behind
                await fresh.open()
                self._current = current = fresh
                if first:
                    await self._sweep()
            for old in [old for old in self._all if old is not current and not old.waiting]:
                self._all.remove(old)
                await old.close()
            return current

    async def _sweep(self) -> None:
        """Delete the reply queues that dead processes left."""
        try:
            for spec in await self._transport.queues():
                made = made_at(spec.name)
                if made is not None and made + STALE <= self._clock():
                    await self._transport.delete(spec.name)
        except TransportError as error:
            _log.debug("left-over reply queues stay: %s", error)


class _Waiting:
    """One call that waits: its token is known to the mailbox for the length of the block."""

    def __init__(self, mailbox: _Mailbox) -> None:
        self._mailbox = mailbox
        self.result: Future[Any] = asyncio.get_running_loop().create_future()
        self.token = mailbox.next_token()
        self._tree = _Tree()

    def __enter__(self) -> Self:
        self._mailbox.waiting[self.token] = self
        return self

    def __exit__(self, *_error: object) -> None:
        del self._mailbox.waiting[self.token]
        if self.result.done() and not self.result.cancelled():
            self.result.exception()  # a failure that came after a time-out has nobody to hear it
        else:
            self.result.cancel()

    def take(self, envelope: Envelope) -> None:
        """Take in the end of one branch."""
        if self.result.done():
            return
        if FAILED in envelope.headers:
            actor = envelope.route.actor or ""
            self.result.set_exception(ActorFailedError(actor, read_failure(envelope.payload)))
            return
        try:
            value = msgspec.json.decode(envelope.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.result.set_exception(InvalidEnvelopeError(f"the result cannot be read: {error}", "parse_error"))
            return
        if self._tree.put(branch_of(envelope.headers), value):
            self.result.set_result(self._tree.value())


class _Tree:
    """The leaves of a tree of fan-outs, as they come in: in any order, and some of them twice."""

    def __init__(self) -> None:
        self._root: Any = _MISSING
        self._missing = 1

    def put(self, place: Sequence[tuple[int, int]], value: Any) -> bool:
        """Put a leaf in its place, which is `(index, count)` for each level; return whether all have come.

        One that came before changes nothing, and neither does one that does not fit what came first.
        """
        siblings, index = [self._root], 0
        top = siblings
        for number, count in place:
            if siblings[index] is _MISSING:
                siblings[index] = _Level([_MISSING] * count)
                self._missing += count - 1
            level = siblings[index]
            if not isinstance(level, _Level) or len(level) != count:
                return False
            siblings, index = level, number
        if siblings[index] is _MISSING:
            siblings[index] = value
            self._missing -= 1
        self._root = top[0]
        return self._missing == 0

    def value(self) -> Any:
        """The only leaf when nothing fanned out, else the list of all in order."""
        return list(_leaves(self._root)) if isinstance(self._root, _Level) else self._root


class _Level(list[Any]):
    """The branches of one fan-out."""


_MISSING = object()


def _leaves(level: _Level) -> list[Any]:
    found = []
    for each in level:
        found += _leaves(each) if isinstance(each, _Level) else [each]
    return found


class _Mailbox:
    """One reply queue and the calls whose results come to it. A task of its own reads it until it is closed."""

    def __init__(self, transport: Transport, made: float) -> None:
        self.queue = f"{REPLY_QUEUE}{int(made):x}-{secrets.token_hex(8)}"
        self.made = made
        self.waiting: dict[str, _Waiting] = {}
        self._transport = transport
        self._last = 0
        self._tries = 0
        self._task: Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nobody reads it any more, as its transport refused for good."""
        return self._task is None or self._task.done()

    def next_token(self) -> str:
        self._last += 1
        return str(self._last)

    async def open(self) -> None:
        await self._declare()
        self._task = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._fail(TransportClosedError())
        try:
            await self._transport.delete(self.queue)
        except TransportError as error:
            _log.debug("reply queue %s stays until it is swept: %s", self.queue, error)

    async def _declare(self) -> None:
        retention = _RETENTION if self._transport.features.retention else None
        await self._transport.declare(QueueSpec(name=self.queue, retention=retention))

    async def _read(self) -> None:
        """Read replies through outages, and make the queue again when somebody deleted it."""
        while True:
            try:
                if self._tries:
                    await asyncio.sleep(_BACK_OFF.backoff(self._tries) * random.uniform(0.5, 1.0))
                    await self._declare()
                async with self._transport.subscribe(self.queue, prefetch=_PREFETCH) as subscription:
                    await self._receive(subscription)
            except (ConnectionLostError, QueueNotFoundError) as error:
                _log.debug("reply queue %s: %s", self.queue, error)
                self._tries += 1
            except TransportError as error:
                self._fail(error)
                return

    async def _receive(self, subscription: Subscription) -> None:
        acks: set[Task[None]] = set()
        try:
            while True:
                lease = await subscription.receive()
                self._tries = 0
                self._take(lease.message)
                ack = asyncio.create_task(_ack(lease))
                acks.add(ack)
                ack.add_done_callback(acks.discard)
        finally:
            await asyncio.gather(*acks)

    def _take(self, message: Message) -> None:
        try:
            envelope = decode_envelope(message.body)
        except InvalidEnvelopeError as error:
            _log.warning("reply queue %s got what is no envelope: %s", self.queue, error)
            return
        waiting = self.waiting.get(str(envelope.headers.get(CALL)))
        if waiting is not None:  # else its call has ended
            waiting.take(envelope)

    def _fail(self, error: TransportError) -> None:
        for waiting in self.waiting.values():
            if not waiting.result.done():
                waiting.result.set_exception(error)


async def _ack(lease: Lease) -> None:
    """Remove a reply. Where that fails it comes again, which does no harm."""
    try:
        await lease.ack()
    except (LeaseLostError, ConnectionLostError, QueueNotFoundError, TransportClosedError) as error:
        _log.debug("a reply was not acknowledged: %s", error)


def made_at(queue: str) -> float | None:
    """When a reply queue was made; None for any other queue."""
    if not queue.startswith(REPLY_QUEUE):
        return None
    moment = queue.removeprefix(REPLY_QUEUE).partition("-")[0]
    try:
        return float(int(moment, 16))
    except ValueError:
        return None


def _marked(send: Send, queue: str, token: str) -> Send:
    """`send` with the headers that bring its result to `queue`."""
    envelope = decode_envelope(send.message.body).with_headers({REPLY_TO: queue, CALL: token})
    return Send(send.queue, msgspec.structs.replace(send.message, body=envelope.encode()), send.delay)
