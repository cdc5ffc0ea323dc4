"""Makes messages of what programs and handlers send, and says what is wrong with it before anything goes out."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Raw

from oncue.context import Named
from oncue.core.envelope import Envelope, Route
from oncue.core.errors import InvalidValueError
from oncue.core.message import NO_HEADERS, Message, Send, check_delay, check_queue_name, new_id
from oncue.core.times import timestamp
from oncue.dead import SENT_AT, dead_queue_name, is_dead_queue
from oncue.workloads.values import write

REPLY_TO = "reply-to"
"""The header of an envelope that names the queue to which the end of its route is told."""
CALL = "oncue-call"
"""The header by which a caller with one queue for many calls tells the replies apart."""
BRANCH = "branch"
"""The header with an envelope's place in the tree of fan-outs: `[index, count]` for each level."""
FAILED = "oncue-failed"
"""The header of a reply that tells of a failure: its code."""

OWN_HEADERS = frozenset({REPLY_TO, CALL, BRANCH, FAILED})
"""What belongs to one route and does not go along with what its handlers send besides."""

HAPPY_END = "happy-end"
ERROR_END = "error-end"
ENDS = frozenset({HAPPY_END, ERROR_END})

_LONGEST_TEXT = 256
_NAMES = uuid.UUID("6b1c1b0e-4a34-5c0b-9a53-0e0d3f6b7c11")


class Outgoing:
    """Makes messages for actors whose queues begin with `prefix`. Everything here is pure but for new ids and times."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def queue(self, actor: str) -> str:
        """The queue of the actor of this name."""
        return self.prefix + actor

    def compose(
        self,
        actor: str | Named,
        payload: Any,
        *,
        delay: float = 0.0,
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> Send:
        """A new message for `actor`. Raise `InvalidValueError` for whatever of it cannot be sent."""
        actors = self._route(actor, route)
        envelope = Envelope.new(
            actors, write(payload, "the payload", InvalidValueError), id=_check_id(id), headers=_check_headers(headers)
        )
        return self._send(envelope, delay, key)

    def compose_many(
        self,
        actor: str | Named,
        payloads: Iterable[Any],
        *,
        delay: float = 0.0,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> list[Send]:
        """As `compose` for each of `payloads`; an error names the payload by its number, from 0."""
        found: object = payloads
        if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
            raise InvalidValueError(f"payloads {payloads!r}: expected a list of payloads, or another iterable of them")
        turns = Route(tuple(self._route(actor, route)))
        queue = self.prefix + turns.actors[0]
        own, sent = _check_headers(headers), {SENT_AT: timestamp()}
        check_delay(delay)
        sends = []
        for number, payload in enumerate(payloads):
            envelope = Envelope(new_id(), turns, write(payload, f"payload {number}", InvalidValueError), own)
            sends.append(Send(queue, Message(envelope.encode(), envelope.id, sent), delay))
        return sends

    def compose_within(
        self,
        envelope: Envelope,
        number: int,
        actor: str | Named,
        payload: Any,
        *,
        delay: float,
        id: str | None,
        key: str | None,
        route: Sequence[str | Named],
        headers: Mapping[str, Any] | None,
    ) -> Send:
        """The message that a handler sends while it works on `envelope`, as its send number `number`.

        Its id derives from the envelope, the place in its route, the target and the number, so that a repeated attempt
        makes the same.
        """
        actors = self._route(actor, route)
        if id is None:
            id = str(uuid.uuid5(_NAMES, f"{envelope.id}\n{envelope.route.current}\n{actors[0]}\n{number}"))
        inherited = {name: value for name, value in envelope.headers.items() if name not in OWN_HEADERS}
        child = Envelope(
            _check_id(id) or new_id(),
            Route(tuple(actors)),
            write(payload, "the payload", InvalidValueError),
            {**inherited, **_check_headers(headers)},
            envelope.id,
        )
        return self._send(child, delay, key)

    def _send(self, envelope: Envelope, delay: float, key: str | None) -> Send:
        if delay:
            check_delay(delay)
        queue = self.prefix + envelope.route.actors[0]
        return Send(queue, message_of(envelope, _check_text(key, "key")), delay)

    def _route(self, actor: str | Named, route: Sequence[str | Named]) -> Sequence[str]:
        if route == ():
            return (self._name(actor),)
        if isinstance(route, str) or not isinstance(route, Sequence):
            raise InvalidValueError(f"route {route!r}: expected a list of actors, such as ['resize', 'store']")
        return [self._name(each) for each in (actor, *route)]

    def _name(self, actor: str | Named) -> str:
        name = actor if isinstance(actor, str) else getattr(actor, "name", None)
        if not isinstance(name, str):
            raise InvalidValueError(f"{actor!r}: expected an actor or the name of one")
        return check_actor_name(name, self.prefix)


@lru_cache(1024)
def check_actor_name(name: str, prefix: str = "") -> str:
    """Return `name` unchanged; raise `InvalidValueError` if no actor can have it."""
    try:
        check_queue_name(dead_queue_name(prefix + name) if name else name)
    except InvalidValueError:
        raise InvalidValueError(
            f"actor name {name!r}: expected up to {128 - len(dead_queue_name(prefix))} letters, digits, '.', '-' or '_', "
            "the first a letter or digit"
        ) from None
    if is_dead_queue(name):
        raise InvalidValueError(f"actor name {name!r}: a queue of such a name holds the dead letters of another")
    return name


def message_of(envelope: Envelope, key: str | None = None, headers: Mapping[str, str] = NO_HEADERS) -> Message:
    """The message that carries `envelope`, sent now."""
    return Message(envelope.encode(), envelope.id, {**headers, SENT_AT: timestamp()}, key)


def _check_id(id: str | None) -> str | None:
    if id == "":
        raise InvalidValueError("id '': expected 1 to 256 characters")
    return _check_text(id, "id")


def _check_text(text: object, what: str) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT or not text.isprintable():
        raise InvalidValueError(f"{what} {text!r}: expected at most {_LONGEST_TEXT} printable characters")
    return text


def _check_headers(headers: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not headers:
        return NO_HEADERS
    found: object = headers
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise InvalidValueError(f"headers {headers!r}: expected a mapping with text keys")
    written: dict[str, Raw] = {
        name: write(value, f"header {name!r}", InvalidValueError) for name, value in headers.items()
    }
    return written
