"""For each case of the suite the transports that are broken in just the way that the case is there to notice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from transports.conformance.sound import ServedStore, ServedTransport

from oncue.transports.memory import MemoryStore, MemoryTransport
from oncue.transports.memory.queue import MemoryQueue
from oncue.transports.memory.subscription import MemoryLease, MemorySubscription

BREAKS: dict[str, list[type[MemoryTransport]]] = defaultdict(list)

_Part = TypeVar("_Part", bound=type)


def breaks(*cases: str) -> Callable[[_Part], _Part]:
    """Register a transport, or a part of one that replaces the sound part, as what these cases have to fail on."""

    def register(part: _Part) -> _Part:
        for case in cases:
            BREAKS[case].append(transport_with(part))
        return part

    return register


def transport_with(part: type) -> type[MemoryTransport]:
    """A memory transport with `part` in its place."""
    name = part.__name__
    if issubclass(part, MemoryTransport):
        return part
    if issubclass(part, MemorySubscription):
        return type(name, (MemoryTransport,), {"subscription_type": part})
    if issubclass(part, ServedStore):
        return type(name, (ServedTransport,), {"store_type": part})
    if issubclass(part, MemoryLease):
        part = type(name, (MemoryQueue,), {"lease_type": part})
    if issubclass(part, MemoryQueue):
        part = type(name, (MemoryStore,), {"queue_type": part})
    return type(name, (MemoryTransport,), {"store_type": part})
