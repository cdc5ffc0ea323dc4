"""The envelope that actors exchange, and its route.

The JSON is Asya's: `id`, `parent_id`, `route` (`actors`, `current`, anything else), `headers`, `payload`. What this module
does not know, at the top and inside the route, is kept as it came, byte for byte, and so is the payload until somebody
asks for its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec
from msgspec import Raw

from oncue.core.errors import InvalidEnvelopeError
from oncue.core.message import NO_HEADERS, new_id

NULL = Raw(b"null")

_KNOWN = frozenset({"id", "parent_id", "route", "headers", "payload"})
_KNOWN_ROUTE = frozenset({"actors", "current"})
NO_EXTRA: Mapping[str, Raw] = NO_HEADERS  # type: ignore[assignment]  # an empty mapping is one of any value type


class Route(msgspec.Struct, frozen=True):
    """The actors of an envelope, by name without a queue prefix, and the index of the one that handles it now.

    `current` equal to the number of actors, or out of range, means that the route is finished. `extra` holds `metadata`
    and unknown fields.
    """

    actors: tuple[str, ...]
    current: int = 0
    extra: Mapping[str, Raw] = NO_EXTRA

    @property
    def actor(self) -> str | None:
        """The name of the actor whose turn it is; None when the route is finished."""
        return self.actors[self.current] if 0 <= self.current < len(self.actors) else None

    def advanced(self) -> Route:
        """The route with the next actor's turn."""
        return Route(self.actors, self.current + 1, self.extra)


class Envelope(msgspec.Struct, frozen=True):
    """One message between actors. `headers` are JSON values under text keys; `extra` holds every unknown field."""

    id: str
    route: Route
    payload: Raw = NULL
    headers: Mapping[str, Any] = NO_HEADERS
    parent_id: str | None = None
    extra: Mapping[str, Raw] = NO_EXTRA

    @classmethod
    def new(
        cls,
        actors: Sequence[str],
        payload: bytes | Raw,
        *,
        id: str | None = None,
        headers: Mapping[str, Any] = NO_HEADERS,
    ) -> Envelope:
        """A fresh envelope at the first of `actors`; `payload` is JSON already."""
        return cls(id or new_id(), Route(tuple(actors)), Raw(payload), headers)

    @property
    def deadline(self) -> datetime | None:
        """When the work has lost its use (field `deadline`, RFC 3339); None when absent or not a time with a zone."""
        raw = self.extra.get("deadline")
        if raw is None:
            return None
        try:
            moment = msgspec.json.decode(raw, type=datetime)
        except (msgspec.ValidationError, msgspec.DecodeError):
            return None
        return moment if moment.tzinfo is not None else None

    def expired(self, now: datetime | None = None) -> bool:
        """Whether the deadline has passed."""
        deadline = self.deadline
        return deadline is not None and deadline <= (now or datetime.now(UTC))

    def encode(self) -> bytes:
        """The envelope as JSON. Empty headers and an absent parent are left out; every unknown field is there."""
        fields = self.fields()
        fields["payload"] = self.payload
        if self.extra:
            fields.update(self.extra)
        return _encode(fields)

    def fields(self) -> dict[str, Any]:
        """The known fields but the payload, as they are written."""
        route = self.route
        fields: dict[str, Any] = {"id": self.id}
        if self.parent_id is not None:
            fields["parent_id"] = self.parent_id
        place: dict[str, Any] = {"actors": route.actors, "current": route.current}
        if route.extra:
            place.update(route.extra)
        fields["route"] = place
        if self.headers:
            fields["headers"] = self.headers
        return fields

    def next(self, payload: Raw, *, route: Route, index: int = 0) -> Envelope:
        """The envelope with the result `payload` for its place in `route`, as item `index` of a fan-out.

        Item 0 keeps the id; item i from 1 on has the id `<id>-<i>` and this envelope as its parent. The ids derive from
        this envelope alone, so a redelivered parent makes the same children. Headers and unknown fields go along.
        """
        if index == 0:
            return Envelope(self.id, route, payload, self.headers, self.parent_id, self.extra)
        return Envelope(f"{self.id}-{index}", route, payload, self.headers, self.id, self.extra)

    def with_headers(self, headers: Mapping[str, Any]) -> Envelope:
        """The envelope with `headers` laid over its own."""
        return msgspec.structs.replace(self, headers={**self.headers, **headers})


def decode_envelope(body: bytes) -> Envelope:
    """Read an envelope; raise `InvalidEnvelopeError` with Asya's texts when `body` is none.

    Numbers are not converted and the payload is not looked into beyond being JSON. A field that is null is absent; an
    absent `current` is 0, and an absent payload null.
    """
    try:
        plain = _decode_plain(body)
    except msgspec.ValidationError:
        return _decode_any(body)  # unknown fields, or a fault that the slow path can name
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _not_parsed(error)
    if not plain.id:
        _missing_id()
    route = Route(plain.route.actors, plain.route.current)
    return Envelope(plain.id, route, plain.payload, plain.headers or NO_HEADERS, plain.parent_id)


def check_turn(envelope: Envelope, actor: str) -> None:
    """Raise `InvalidEnvelopeError` unless it is `actor`'s turn."""
    found = envelope.route.actor or ""
    if found != actor:
        raise InvalidEnvelopeError(
            f"Route mismatch: message routed to wrong actor (expected: {actor}, actual: {found})", "route_mismatch"
        )


class _PlainRoute(msgspec.Struct, forbid_unknown_fields=True):
    actors: tuple[str, ...]
    current: int = 0


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    """An envelope without unknown fields, which nearly all are: read in one step."""

    id: str
    route: _PlainRoute
    payload: Raw = NULL
    headers: dict[str, Any] | None = None
    parent_id: str | None = None


_decode_plain = msgspec.json.Decoder(_Plain).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def _decode_any(body: bytes) -> Envelope:
    try:
        fields = _decode_fields(body)
        id = _field(fields, "id", str | None)
        parent_id = _field(fields, "parent_id", str | None)
        headers = _field(fields, "headers", dict[str, Any] | None)
        route_fields = _field(fields, "route", dict[str, Raw] | None) or {}
        actors = _field(route_fields, "actors", tuple[str, ...] | None, "route.") or ()
        current = _field(route_fields, "current", int | None, "route.") or 0
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _not_parsed(error)
    if not id:
        _missing_id()
    route = Route(actors, current, _others(route_fields, _KNOWN_ROUTE))
    payload = fields.get("payload", NULL)
    return Envelope(id, route, payload, headers or NO_HEADERS, parent_id, _others(fields, _KNOWN))


def _field(fields: Mapping[str, Raw], name: str, kind: Any, path: str = "") -> Any:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"field '{path}{name}': {error}") from None


def _others(fields: Mapping[str, Raw], known: Iterable[str]) -> Mapping[str, Raw]:
    others = {name: raw.copy() for name, raw in fields.items() if name not in known}
    return others or NO_EXTRA


def _not_parsed(error: Exception) -> NoReturn:
    raise InvalidEnvelopeError(f"Failed to parse message: {error}", "parse_error") from None


def _missing_id() -> NoReturn:
    raise InvalidEnvelopeError("Envelope missing required 'id' field", "validation_error")
