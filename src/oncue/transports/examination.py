"""What a transport can say of its broker's own settings. Pure; `oncue doctor` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

State = Literal["ok", "note", "bad"]
"""As it should be; works, but worth knowing; messages are in danger, or nothing works."""


class Remark(msgspec.Struct, frozen=True):
    """One thing that was looked at: what it is, and how it is, without secrets."""

    name: str
    state: State
    text: str


@runtime_checkable
class Examined(Protocol):
    """A transport whose broker has settings of its own that decide over messages."""

    async def examine(self) -> Sequence[Remark]:
        """What the broker's settings mean for messages. Changes nothing; may be cancelled; raises `TransportError`."""
        ...
