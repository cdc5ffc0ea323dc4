"""Opens transports by URL. The module of a scheme is imported when the first URL of that scheme is opened."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from oncue.core.errors import InvalidValueError, LoadError, MissingExtraError
from oncue.core.redact import redact_url
from oncue.transports.base import Transport

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["open_transport", "schemes"]

_GROUP = "oncue.transports"
_OPENERS = {
    "amqp": "oncue.transports.rabbitmq:open_rabbitmq",
    "amqps": "oncue.transports.rabbitmq:open_rabbitmq",
    "kafka": "oncue.transports.kafka:open_kafka",
    "kafka+ssl": "oncue.transports.kafka:open_kafka",
    "memory": "oncue.transports.memory:open_memory",
    "nats": "oncue.transports.nats:open_nats",
    "pubsub": "oncue.transports.pubsub:open_pubsub",
    "redis": "oncue.transports.redis:open_redis",
    "rediss": "oncue.transports.redis:open_redis",
    "sqs": "oncue.transports.sqs:open_sqs",
    "sqlite": "oncue.transports.sqlite:open_sqlite",
    "tls": "oncue.transports.nats:open_nats",
}
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)

Opener = Callable[[str], Awaitable[Transport]]


async def open_transport(url: str) -> Transport:
    """Connect to what `url` names, such as `memory:` or `sqlite:///jobs.db`; the caller closes it.

    Raise `InvalidValueError` for a URL without a scheme or of one that nobody registered, `MissingExtraError` when the client
    of its transport is not installed, and what the transport raises when it cannot be reached.
    """
    scheme = _scheme_of(url)
    return await _opener(scheme)(url)


def schemes() -> list[str]:
    """The schemes that can be opened, those of other packages included."""
    return sorted({*_OPENERS, *(point.name for point in _others())})


def _scheme_of(url: str) -> str:
    match = _SCHEME.match(url)
    if match is None:
        raise InvalidValueError(
            f"transport {redact_url(url)!r}: expected a URL such as 'sqlite:///jobs.db'; known schemes: {', '.join(schemes())}"
        )
    return match["scheme"].lower()


def _opener(scheme: str) -> Opener:
    if scheme in _OPENERS:
        module, _, name = _OPENERS[scheme].partition(":")
        try:
            opener: Opener = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "oncue":
                raise
            raise MissingExtraError(scheme, module.rpartition(".")[2]) from error
        return opener
    for point in _others():
        if point.name == scheme:
            return _load(point)
    known = schemes()
    close = get_close_matches(scheme, known, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InvalidValueError(f"transport {scheme}: is an unknown scheme{hint}; known schemes: {', '.join(known)}")


def _others() -> Iterable[EntryPoint]:
    """The transports of other packages."""
    from importlib.metadata import entry_points  # megabytes that a sidecar on a transport of ours does without

    return entry_points(group=_GROUP)


def _load(point: EntryPoint) -> Opener:
    try:
        opener: Opener = point.load()
    except (ImportError, AttributeError) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and not f"{point.module}.".startswith(f"{error.name}.")
        ):
            package = point.dist.name if point.dist is not None else point.module
            raise MissingExtraError(point.name, package, module=error.name) from error
        raise LoadError(f"transport {point.name}: {point.value} cannot be loaded: {error}") from error
    return opener
