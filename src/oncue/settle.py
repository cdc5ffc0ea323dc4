"""Turns the outcome of an attempt into one call on its lease: the only place where a lease ends.

Outputs go out with the acknowledgement. What the transport cannot do now is tried again for as long as the lease is held;
what it will never do (a queue that is not there, a body over the limit) becomes a failure of the attempt, and where it
refuses that too, the lease is left to run out.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

import msgspec

from oncue.core.errors import (
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    MessageTooLargeError,
    OnCueError,
    QueueMismatchError,
    QueueNotFoundError,
    TransportClosedError,
)
from oncue.core.failure import ROUTING_ERROR, Failure
from oncue.core.message import LONGEST_DELAY, Message, Send
from oncue.core.outcome import Dead, Done, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.dead import dead_letter, dead_queue_name
from oncue.events import (
    Event,
    Events,
    LeaseLost,
    MessageDead,
    MessageDone,
    MessageReleased,
    MessageRetried,
    SettleFailed,
)
from oncue.transports.base import Lease, QueueSpec, Transport

_log = logging.getLogger("oncue.settle")

OnDead = Callable[[Message, Failure], Sequence[Send]]
"""What else goes out, in the same settle, when a message goes to the dead letters (an error envelope, a reply)."""

_RETRY_UNREACHABLE = RetryPolicy(max_attempts=1, base=0.05, factor=2.0, cap=5.0)


def no_sends(_message: Message, _failure: Failure) -> Sequence[Send]:
    """The `OnDead` of a queue whose dead letters concern nobody else."""
    return ()


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How the messages of one queue are settled."""

    transport: Transport
    queue: str
    retry: RetryPolicy
    on_dead: OnDead = no_sends
    events: Events

    def decide(self, outcome: Outcome, attempt: int) -> Outcome:
        """The outcome with the retry policy applied: a `Retry` has its delay, or is `Dead` when attempts are used up.

        A delay that the transport cannot do is shortened to its longest.
        """
        if not isinstance(outcome, Retry):
            return outcome
        decided = self.retry.decide(attempt, outcome.failure)
        if isinstance(decided, Dead):
            return decided
        delay = outcome.delay if outcome.delay is not None else decided.delay
        longest = self.transport.features.longest_delay
        return Retry(outcome.failure, min(delay or 0.0, LONGEST_DELAY if longest is None else longest))

    async def settle(self, lease: Lease, outcome: Outcome, seconds: float) -> Outcome | None:
        """End `lease` as `outcome` says; return what it was in the end, or None when the lease was lost.

        `seconds` is how long the handler took, for the events. While the transport cannot be reached it is asked again,
        until the lease is lost or the transport is closed. Cancelling it leaves the lease to run out, so callers let it
        finish. Raises nothing: what the transport refuses whatever is asked is left to run out as well.
        """
        decided: Outcome | None = self.decide(outcome, lease.attempt)
        tries = 0
        while decided is not None:
            try:
                await self._apply(lease, decided)
            except (LeaseLostError, TransportClosedError):
                break
            except ConnectionLostError as error:
                self._tell(SettleFailed(self.queue, lease.message.id, str(error)))
                tries += 1
                await asyncio.sleep(_RETRY_UNREACHABLE.backoff(tries) * random.uniform(0.5, 1.0))
            except Exception as error:
                if not isinstance(error, OnCueError):
                    _log.exception("a message of queue %s could not be settled", self.queue)
                self._tell(SettleFailed(self.queue, lease.message.id, str(error)))
                decided = self._instead(decided, lease.attempt, error)
            else:
                if self.events:
                    self.events.emit(_event(self.queue, lease, decided, seconds))
                return decided
        self._tell(LeaseLost(self.queue, lease.message.id, lease.attempt, seconds))
        return None

    async def _apply(self, lease: Lease, outcome: Outcome) -> None:
        match outcome:
            case Done(sends, replies):
                if replies:
                    await _ack(lease, sends, replies)
                else:
                    await lease.ack(*sends)
            case Retry(_, delay):
                await lease.nack(delay=delay or 0.0)
            case Dead(failure):
                await self._bury(lease, failure)
            case Release():
                await lease.release()

    async def _bury(self, lease: Lease, failure: Failure) -> None:
        """Move the message to the dead letters; what else goes out must not keep it from getting there."""
        letter = dead_letter(self.queue, lease.message, failure, lease.attempt)
        also = self._also(lease.message, failure)
        try:
            gone = await _ack(lease, (letter,), also)
        except (QueueNotFoundError, MessageTooLargeError, InvalidValueError) as error:
            self._tell(SettleFailed(self.queue, lease.message.id, str(error)))
            if isinstance(error, QueueNotFoundError):
                await self._make_dead_queue()
            else:
                also = ()
            gone = await _ack(lease, (letter,), also)
        for queue in gone:
            self._tell(SettleFailed(self.queue, lease.message.id, str(QueueNotFoundError(queue))))

    async def _make_dead_queue(self) -> None:
        try:
            await self.transport.declare(QueueSpec(name=dead_queue_name(self.queue)))
        except QueueMismatchError:
            _log.debug("the dead queue of %s is there, with settings of its own", self.queue)

    def _also(self, message: Message, failure: Failure) -> Sequence[Send]:
        try:
            return self.on_dead(message, failure)
        except Exception:  # a fault of ours, which must not keep the message from its dead letters
            _log.exception("what else goes out with a dead letter of queue %s could not be made", self.queue)
            return ()

    def _instead(self, outcome: Outcome, attempt: int, error: Exception) -> Outcome | None:
        """What to do when the transport refuses `outcome` for good; None when there is nothing left to try."""
        failure = Failure(
            ROUTING_ERROR,
            type(error).__name__,
            str(error),
            # Working once more would not make the queue, and what the handler did outside would be done again.
            final=isinstance(error, QueueNotFoundError | MessageTooLargeError | InvalidValueError),
        )
        match outcome:
            case Done():
                return self.decide(Retry(failure), attempt)
            case Dead():
                return Retry(failure, _RETRY_UNREACHABLE.cap)
            case _:
                return None

    def _tell(self, event: Event) -> None:
        if self.events:
            self.events.emit(event)


async def _ack(lease: Lease, sends: Sequence[Send], optional: Sequence[Send]) -> Sequence[str]:
    """Acknowledge with all of `sends`, and with those of `optional` whose queues are there; the queues that are not."""
    gone: list[str] = []
    while True:
        try:
            await lease.ack(*sends, *optional)
        except QueueNotFoundError as error:
            if all(send.queue != error.queue for send in optional):
                raise
            gone.append(error.queue)
            optional = [send for send in optional if send.queue != error.queue]
        else:
            return gone


def _event(queue: str, lease: Lease, outcome: Outcome, seconds: float) -> Event:
    id, attempt = lease.message.id, lease.attempt
    match outcome:
        case Done(sends, replies):
            return MessageDone(queue, id, attempt, seconds, len(sends) + len(replies))
        case Retry(failure, delay):
            return MessageRetried(queue, id, attempt, seconds, delay or 0.0, _reason(failure))
        case Dead(failure):
            return MessageDead(queue, id, attempt, seconds, _reason(failure))
        case Release():
            return MessageReleased(queue, id, attempt, seconds)


def _reason(failure: Failure) -> str:
    return f"{failure.type}: {failure.message}"
