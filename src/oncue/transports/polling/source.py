"""What is different from service to service: the calls, their limits, errors and deadlines."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from oncue.core.message import Message, Send
from oncue.transports.polling.lines import Parcel


class Received(Protocol):
    """A message as the service handed it out, and whatever the service wants to be told to settle it."""

    @property
    def message(self) -> Message: ...
    @property
    def attempts(self) -> int: ...  # how often it was handed out, this time included
    @property
    def lost(self) -> int: ...  # how often with whoever held it, before
    @property
    def group(self) -> str | None: ...  # of which one message is handed out at a time; None where order is not kept
    @property
    def first_sent(self) -> int: ...  # in microseconds since 1970, about; it only orders what is looked at


R = TypeVar("R", bound=Received)


class Arrival(NamedTuple, Generic[R]):
    """A message in an answer that may have been here since `at`, by the event loop's clock.

    rest: seconds of a delay that are not over yet. old: whether it was kept for too long, and is to be dropped.
    """

    received: R
    at: float
    rest: float = 0.0
    old: bool = False


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """By what rules the service hands out the messages of one queue. Times are in seconds.

    lease: how long a lease lasts. kept: for how long the service itself keeps a message that it hands out.
    shorten: whether it is told at once that a lease is shorter than that.
    longest_hold: how long a message can be held in all. longest_wait: how long one that is not sent anew can be put off.
    most: messages in one answer. polls: requests for messages that are under way while there are many.
    last_poll: how long whoever leaves waits for one that is under way, so that nothing comes that nobody is there for.
    """

    lease: float
    kept: float
    shorten: bool = False
    longest_hold: float = math.inf
    longest_wait: float
    most: int
    polls: int
    last_poll: float | None = None


class Source(Protocol[R]):
    """One queue of a service, as its subscriptions use it. Its methods raise errors of `oncue.core.errors`.

    What is settled `until` a moment of the event loop's clock is not asked for after it; that is a `LeaseLostError`, as what the
    service refuses because the message is somebody else's now.
    """

    @property
    def name(self) -> str: ...
    @property
    def fifo(self) -> bool: ...
    @property
    def terms(self) -> Terms: ...
    @property
    def log(self) -> logging.Logger: ...

    async def poll(self, most: int, empty: int | None) -> Sequence[Arrival[R]]:
        """Ask for messages, after `empty` requests that brought none; None: while another one waits, so this does not."""
        ...

    async def parcels(self, sends: Sequence[Send], cause: R, /) -> Sequence[Parcel]:
        """What goes out with the acknowledgement of `cause`; raise for what cannot be sent."""
        ...

    def anew(self, received: R, attempts: int, delay: float) -> Parcel | None:
        """The message with its history, to be sent once more; None where that cannot be, or would change an order.

        Raise `MessageTooLargeError` if its history makes it too large.
        """
        ...

    async def delete(self, received: R, until: float) -> None:
        """For good; returns when that is known."""
        ...

    async def put_off(self, received: R, seconds: float, until: float) -> None:
        """Have the service hand it out again then, which counts as an attempt; at once for 0."""
        ...

    async def keep(self, received: R, seconds: float, until: float) -> float:
        """Have the service keep it for its holder; return for how many seconds that is, or less if it takes no more at once."""
        ...
