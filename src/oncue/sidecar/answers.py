"""What a runtime's answers mean for routes: items of ours with the rest of their envelopes, and items of Asya's protocol."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from oncue.core.envelope import NO_EXTRA, NULL, Envelope, Route
from oncue.workloads import Routed
from oncue.workloads.socket import Item

_KNOWN = frozenset({"id", "parent_id", "route", "headers", "payload"})


class Details(msgspec.Struct):
    """What Asya's errors have beside their code."""

    message: str = ""
    type: str = ""
    traceback: str = ""


class AsyaItem(msgspec.Struct):
    """One item of an answer in Asya's protocol."""

    payload: Raw = NULL
    route: dict[str, Raw] | None = None
    headers: dict[str, Any] | None = None
    error: str | None = None
    details: Details | None = None


class _Rest(msgspec.Struct):
    """The part of an envelope beside its payload that a handler in envelope mode decides on."""

    route: dict[str, Raw] | None = None
    headers: dict[str, Any] | None = None


read_items = msgspec.json.Decoder(list[AsyaItem] | None).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


def result_of(item: Item, envelope: Envelope) -> Raw | Routed:
    """The result that an item of our runtime is. Raise `msgspec.DecodeError` for one whose route or headers are none."""
    if not item.fields:
        return item.payload
    rest = _decode_rest(item.fields)
    extra = {name: raw.copy() for name, raw in _decode_fields(item.fields).items() if name not in _KNOWN}
    headers = envelope.headers if rest.headers is None else rest.headers
    return Routed(item.payload, _route(rest.route, envelope), headers, {**envelope.extra, **extra} or NO_EXTRA)


def routed(item: AsyaItem, envelope: Envelope) -> Routed:
    """The same for an item of another's runtime, whose route stands as it is."""
    headers = envelope.headers if item.headers is None else {**envelope.headers, **item.headers}
    return Routed(item.payload, _route(item.route, envelope), headers, envelope.extra)


def _route(given: dict[str, Raw] | None, envelope: Envelope) -> Route:
    """The route as a runtime returned it; one that says nothing about it leaves it to go on by one."""
    if given is None or "actors" not in given:
        return envelope.route.advanced()
    actors: tuple[str, ...] = msgspec.json.decode(given["actors"], type=tuple[str, ...])
    current = msgspec.json.decode(given["current"], type=int) if "current" in given else 0
    extra = {name: raw.copy() for name, raw in given.items() if name not in {"actors", "current"}}
    return Route(actors, current, extra or envelope.route.extra)
