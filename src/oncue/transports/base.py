"""The transport contract: bytes in queues. A transport knows nothing of envelopes, retries or outcomes.

Every method raises errors of `oncue.core.errors` only: `TransportError`, or `ConfigError` for what no queue of this transport
could take. It may be cancelled without losing a message, and is asked for one thing at a time by many coroutines: the
transport itself turns what is asked at the same moment into one round trip. `oncue.testing.TransportConformance` is this
contract as tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from oncue.core.message import Message, Send


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A queue: how long a lease lasts (s), whether messages of one key stay in order, how long they are kept (s)."""

    name: str
    lease: float = 60.0
    fifo: bool = False
    retention: float | None = None
    tags: Mapping[str, str] = {}


class Depth(msgspec.Struct, frozen=True):
    """How many messages wait, are leased, and are delayed; None where this broker cannot tell."""

    ready: int | None
    leased: int | None
    delayed: int | None


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What a transport can do by itself; the docs of each field are the capability table's headings."""

    durable: bool  # messages outlive the process
    shared: bool  # several processes may use one queue
    atomic_ack: bool  # ack(*sends) does all or nothing
    free_release: bool  # release() does not count the attempt
    native_delay: bool
    longest_delay: float | None  # s; None: no limit
    fifo: bool  # keeps the order of messages of one key
    lease_cap: float | None  # s, the longest a message can be held in all; None: no limit
    max_body: int | None  # bytes; None: no limit
    headers: bool
    depth: frozenset[str]  # which of ready, leased, delayed are exact
    peek: bool  # a look hides and counts nothing; else it does both for a moment, as a consumer that dies
    retention: bool
    competing: bool = True  # whoever has room gets the next message; else each consumer has its share of a queue


class Lease(Protocol):
    """A received message, yours until it is settled or its time runs out; then all methods raise LeaseLostError."""

    @property
    def message(self) -> Message: ...
    @property
    def attempt(self) -> int: ...  # 1 on first delivery
    async def ack(self, *sends: Send) -> None: ...  # publish, then acknowledge; if a send fails, it is still yours
    async def nack(self, *, delay: float = 0.0) -> None: ...  # again later, counted
    async def release(self) -> None: ...  # again now, uncounted where features.free_release
    async def extend(self, seconds: float) -> None: ...  # the lease now ends this long from now


class Subscription(Protocol):
    """At most `prefetch` of its leases are unsettled, and at most one of a message whose leases ran out twice before."""

    async def receive(self) -> Lease: ...  # with half its time left; after ConnectionLostError, just call again
    def resize(self, prefetch: int) -> None: ...  # what was fetched beyond it and not yet received is given back


class Transport(Protocol):
    features: Features

    async def declare(self, spec: QueueSpec) -> None: ...  # existing and equal: nothing; different: QueueMismatchError
    async def delete(self, queue: str) -> None: ...  # with its messages; a queue that is not there: nothing
    async def queues(self) -> Sequence[QueueSpec]: ...  # by name
    async def send(self, *sends: Send) -> None: ...  # stored when it returns, else PartialSendError or none is stored
    def subscribe(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]: ...
    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]: ...  # oldest first; see features.peek
    async def depth(self, queue: str) -> Depth: ...
    async def purge(self, queue: str) -> int: ...  # drops what is ready, and delayed where features.depth has that
    async def close(self) -> None: ...  # releases what is held; may be called twice
