"""What ends a connection or a channel, and what cannot be read."""

from __future__ import annotations

from typing import Self

LOST, CLOSED, FRAME_ERROR = 0, 200, 501
"""Codes of ours: the socket broke without a word, this side closed, what came makes no sense."""


class ClosedError(Exception):
    """`code` and `text` are the server's, with the ids of the method that it refused (0 where there is none), or ours."""

    def __init__(self, code: int, text: str, class_id: int = 0, method_id: int = 0) -> None:
        super().__init__(code, text, class_id, method_id)
        self.code, self.text, self.class_id, self.method_id = code, text, class_id, method_id

    def __str__(self) -> str:
        return f"{self.text} ({self.code})" if self.code else self.text

    def again(self) -> Self:
        """The same once more: one object must not be raised in several places."""
        return type(self)(*self.args)


class ConnectionClosed(ClosedError):  # noqa: N818 - the protocol's own word
    """The whole connection ended, with all its channels."""


class ChannelClosed(ClosedError):  # noqa: N818 - the same
    """One channel ended."""


class MalformedError(ValueError):
    """Bytes that are not what the protocol says, or values that it cannot carry."""
