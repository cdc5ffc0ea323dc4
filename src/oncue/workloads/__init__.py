"""What answers an actor's call: the contract between an actor and its function, socket or HTTP service."""

from __future__ import annotations

from typing import Protocol

from msgspec import Raw

from oncue.context import Context
from oncue.core.envelope import Envelope
from oncue.core.outcome import Dead, Retry

Answer = Raw | tuple[Raw, ...] | None | Retry | Dead
"""A result as JSON; several that fan out; None when the route ends here; or what a failed attempt came to."""


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
