"""Every error that OnCue raises on purpose, in one tree.

    OnCueError
    ├── ConfigError                  something the person who runs it has to change
    │   ├── InvalidValueError        one value: a name, a delay, a URL
    │   ├── SettingsError            one or many settings, each with its path
    │   ├── MissingExtraError        a transport whose client is not installed
    │   ├── DuplicateActorError      two actors of one name in one app
    │   └── LoadError                an app or a handler that cannot be imported
    ├── TransportError               at the level of the queue
    │   ├── ConnectionLostError      the broker or the file cannot be reached now; trying again may help
    │   │   ├── StorageFullError     no room left where the messages are kept
    │   │   └── ThrottledError       asked more often than the broker allows
    │   ├── AccessDeniedError        wrong credentials, or a file that may not be written
    │   ├── IncompatibleStoreError   the store is of another version or kind, or its file system cannot lock
    │   ├── QueueNotFoundError       no such queue
    │   ├── QueueMismatchError       the queue exists with other settings
    │   ├── LeaseLostError           the lease ran out or was settled before; the message is somebody else's
    │   ├── MessageTooLargeError     the body is over the transport's limit
    │   ├── PartialSendError         some messages of one call were stored and some were not
    │   └── TransportClosedError     used after close
    ├── InvalidEnvelopeError         bytes that are not an envelope, or an envelope sent to the wrong actor
    ├── InvalidPayloadError          a payload of another type than the handler declares, with the path of the bad field
    ├── InvalidResultError           a handler's result that cannot be written as JSON
    ├── UnknownActorError            no actor of this name, neither in the app nor among the queues
    ├── RetryRequestedError          raised by `Context.retry`: the handler asks for another attempt
    ├── GiveUpError                  raised by `Context.dead`: the handler says that no further attempt makes sense
    └── CallError                    a call that brought no result
        ├── ActorFailedError         the route ended in a failure, which is attached
        └── CallTimeoutError         no result in time; the work itself may still go on

Texts never hold secrets: URLs go through `oncue.core.redact` before they get here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from oncue.core.failure import Failure

_Error = TypeVar("_Error", bound="OnCueError")


class OnCueError(Exception):
    """The root of the tree: `except OnCueError` catches all that OnCue raises on purpose."""


class ConfigError(OnCueError):
    """Something is set up wrongly; trying again without a change will not help."""


class InvalidValueError(ConfigError, ValueError):
    """A value outside of what is allowed; the text names the value and what was expected."""


class SettingsError(ConfigError):
    """Settings with faults; `faults` has one line for each, and the text has all of them."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class MissingExtraError(ConfigError):
    """The client library of a transport is not installed; the text holds the pip line, or for a transport of another
    package the name of the missing `module`."""

    def __init__(self, scheme: str, extra: str, *, module: str | None = None) -> None:
        own = f"needs an extra: pip install 'oncue[{extra}]'"
        super().__init__(
            f"{scheme}: {own if module is None else f'needs the module {module!r}, see package {extra!r}'}"
        )
        self.scheme = scheme
        self.extra = extra


class DuplicateActorError(ConfigError):
    """Two actors of one app have the same name."""


class LoadError(ConfigError):
    """An app or handler cannot be imported; the text names the real error and its place."""


class TransportError(OnCueError):
    """The queue could not do what was asked."""


class ConnectionLostError(TransportError):
    """The broker or the store cannot be reached at the moment; whether the request took effect is unknown."""


class StorageFullError(ConnectionLostError):
    """There is no room left where messages are kept; nothing of the request was stored."""


class ThrottledError(ConnectionLostError):
    """The broker was asked more often than it allows, and still after waiting; nothing was done."""


class AccessDeniedError(TransportError):
    """Credentials are wrong, or a file may not be written."""


class IncompatibleStoreError(TransportError):
    """The store is of another version or kind, or lies on a file system that cannot lock."""


class QueueNotFoundError(TransportError):
    """There is no queue of this name."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} does not exist")
        self.queue = queue


class QueueMismatchError(TransportError):
    """The queue exists with other settings; it was left as it is."""

    def __init__(self, queue: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        shown = ", ".join(f"{name} is {have!r}, asked {asked!r}" for name, (have, asked) in differences.items())
        super().__init__(f"queue {queue!r} exists with other settings: {shown}")
        self.queue = queue
        self.differences = dict(differences)


class LeaseLostError(TransportError):
    """The lease ran out or was settled before; nothing was changed."""

    def __init__(self, queue: str, message_id: str) -> None:
        super().__init__(f"the lease of message {message_id!r} in queue {queue!r} is no longer held")
        self.queue = queue
        self.message_id = message_id


class MessageTooLargeError(TransportError):
    """A body is over the transport's limit; nothing of the call was stored."""

    def __init__(self, queue: str, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes for queue {queue!r} is over the limit of {limit} bytes")
        self.queue = queue
        self.size = size
        self.limit = limit


class PartialSendError(TransportError):
    """Some messages of a call were not stored; `failed` maps their positions in the call to the reasons."""

    def __init__(self, failed: Mapping[int, TransportError], total: int) -> None:
        first = next(iter(failed.values()))
        super().__init__(f"{len(failed)} of {total} messages were not stored, the first because: {first}")
        self.failed = dict(failed)
        self.total = total


class TransportClosedError(TransportError):
    """The transport was closed; nothing was sent or settled."""

    def __init__(self) -> None:
        super().__init__("the transport is closed")


class InvalidEnvelopeError(OnCueError):
    """Bytes that are not an envelope of ours; `reason` is parse_error, validation_error or route_mismatch."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class InvalidPayloadError(OnCueError):
    """The payload does not fit the handler's annotation; the text holds the path of the bad field."""


class InvalidResultError(OnCueError):
    """A handler returned what cannot be written as JSON."""


class UnknownActorError(OnCueError):
    """There is no actor of this name: neither the app nor the store has its queue."""


class RetryRequestedError(OnCueError):
    """The handler asks for another attempt, after `retry_after` seconds when it is not None."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason or "the handler asked for another attempt")
        self.retry_after = retry_after


class GiveUpError(OnCueError):
    """The handler says that no further attempt makes sense: the message goes to the dead letters."""

    dead = True


class CallError(OnCueError):
    """A call that brought no result."""


class ActorFailedError(CallError):
    """The route of a call ended in `failure`, at the actor named `actor`."""

    def __init__(self, actor: str, failure: Failure) -> None:
        super().__init__(f"actor {actor!r} failed: {failure.type}: {failure.message}")
        self.actor = actor
        self.failure = failure


class CallTimeoutError(CallError, TimeoutError):
    """No result came in time; the work itself may still be done."""


def again(error: _Error) -> _Error:
    """The same error once more, with its cause: one object must not be raised in several places."""
    copy = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
