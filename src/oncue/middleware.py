"""A handler takes a message and its attempt and returns an outcome; middleware is a function from handler to handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from oncue.core.message import Message
from oncue.core.outcome import Outcome

Handler = Callable[[Message, int], Awaitable[Outcome]]
"""A user's mistake is an outcome; an exception out of a handler is a fault of OnCue or of a middleware."""

Middleware = Callable[[Handler], Handler]


def compose(handler: Handler, middleware: Iterable[Middleware]) -> Handler:
    """Wrap `handler` so that the first of `middleware` is the outermost."""
    for wrap in reversed(tuple(middleware)):
        handler = wrap(handler)
    return handler
