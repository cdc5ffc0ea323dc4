"""OnCue runs queue-driven actors: write a function, and OnCue takes the messages and moves the results on.

Names are loaded when they are first used, so that importing `oncue` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oncue.actors import Actor
    from oncue.app import App
    from oncue.blocking import BlockingApp
    from oncue.context import Context
    from oncue.core.errors import (
        ActorFailedError,
        CallError,
        CallTimeoutError,
        ConfigError,
        GiveUpError,
        InvalidValueError,
        OnCueError,
        RetryRequestedError,
        TransportError,
        UnknownActorError,
    )
    from oncue.core.retry import RetryPolicy as Retry
    from oncue.stop import Stop

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "ActorFailedError",
    "App",
    "BlockingApp",
    "CallError",
    "CallTimeoutError",
    "ConfigError",
    "Context",
    "GiveUpError",
    "InvalidValueError",
    "OnCueError",
    "Retry",
    "RetryRequestedError",
    "Stop",
    "TransportError",
    "UnknownActorError",
]

_HOMES = {
    "Actor": "oncue.actors",
    "App": "oncue.app",
    "BlockingApp": "oncue.blocking",
    "Context": "oncue.context",
    "Retry": "oncue.core.retry:RetryPolicy",
    "Stop": "oncue.stop",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = _HOMES.get(name, "oncue.core.errors").partition(":")
    value = getattr(import_module(module), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
