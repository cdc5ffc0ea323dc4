"""What answers an actor's call: the contract between an actor and its function, socket or HTTP service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from oncue.context import Context
from oncue.core.envelope import Envelope, Route
from oncue.core.outcome import Dead, Release, Retry


class Routed(msgspec.Struct, frozen=True):
    """A result that says itself how it goes on: by `route` as it stands, with these headers and unknown fields."""

    payload: Raw
    route: Route
    headers: Mapping[str, Any]
    extra: Mapping[str, Raw]


Answer = Raw | Routed | Sequence[Raw | Routed] | None | Retry | Dead | Release
"""A result as JSON; several that fan out; None or no result when the route ends here; or what an attempt without a result
came to."""


class Workload(Protocol):
    """Answers calls, many at the same time, in one event loop."""

    async def answer(self, envelope: Envelope, context: Context) -> Answer:
        """Work on the payload of `envelope`. What the workload sends besides its answer goes through `context`.

        Whatever goes wrong on the workload's side is a `Retry` or `Dead`; an exception is a fault of OnCue. Cancelling it
        ends the work as far as that can be done, and is never swallowed.
        """
        ...

    async def close(self) -> None:
        """End what is still running and free what is held, within seconds. May be called twice."""
        ...
