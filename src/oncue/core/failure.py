"""Why an attempt failed, as data that can be logged, sent on and stored."""

from __future__ import annotations

import traceback as tracebacks
from types import TracebackType

import msgspec

from oncue.core.times import finite

PROCESSING_ERROR = "processing_error"
"""The code of a failure in the user's own code (as in Asya)."""
PARSING_ERROR = "msg_parsing_error"
"""The code of a message that is not what the actor takes (as in Asya)."""
TIMEOUT_ERROR = "timeout_error"
"""The code of a handler that did not finish in time."""
CRASH_ERROR = "crash_error"
"""The code of a message whose consumers did not live to settle it."""
CONNECTION_ERROR = "connection_error"
"""The code of a message whose workload could not be reached, or was lost while it worked on it (as in Asya)."""
ROUTING_ERROR = "routing_error"
"""The code of a result that could not be sent on."""
EXPIRED_ERROR = "expired_error"
"""The code of a message whose deadline passed before its handler started."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One failed attempt.

    `code` is one of the codes of this module, `type` the error's class name and `bases` the names of the classes it
    derives from. `retry_after` is a wish for the wait before the next attempt, in seconds; `final` says that no
    further attempt makes sense.
    """

    code: str
    type: str
    message: str
    traceback: str = ""
    retry_after: float | None = None
    final: bool = False
    bases: tuple[str, ...] = ()

    @classmethod
    def from_exception(cls, error: BaseException, *, code: str = PROCESSING_ERROR, skip_frames: int = 0) -> Failure:
        """Describe `error`, leaving the outermost `skip_frames` frames (ours, not the user's) out of its traceback.

        The signals `retry_after` (seconds) and `dead` (true) are read off any exception by attribute, so that user code
        needs nothing of OnCue to give them. Never raises; what cannot be written as UTF-8 is replaced.
        """
        frames = error.__traceback__
        for _ in range(skip_frames):
            frames = frames.tb_next if frames is not None else None
        return cls(
            code=code,
            type=type(error).__name__,
            message=_text_of(error),
            traceback=_format(error, frames),
            retry_after=_wait(_signal(error, "retry_after")),
            final=_signal(error, "dead") is True,
            bases=tuple(base.__name__ for base in type(error).__mro__[1:-1]),
        )


# What follows calls users' code, which may itself raise, and a failure must be describable all the same.


def _text_of(error: BaseException) -> str:
    try:
        return _writable(str(error))
    except Exception as broken:
        return f"<{type(error).__name__} whose text raised {type(broken).__name__}>"


def _format(error: BaseException, frames: TracebackType | None) -> str:
    try:
        return _writable("".join(tracebacks.format_exception(type(error), error, frames)))
    except Exception as broken:
        return f"<traceback could not be formatted: {type(broken).__name__}>"


def _signal(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except Exception:  # a property that cannot answer gives no signal
        return None


def _wait(value: object) -> float | None:
    seconds = finite(value)
    return None if seconds is None or seconds < 0 else seconds


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
