"""What a queue was declared as, written into labels of its subscription.

Labels hold lower-case letters, digits and hyphens only, so it is JSON in Base32, cut into pieces. Tags that are labels as they are
stand beside it, for people.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

import msgspec

from oncue.core.errors import IncompatibleStoreError, InvalidValueError
from oncue.transports.base import QueueSpec

_PIECE = "oncue-spec-"
_LONGEST = 63
_MOST = 64
_LABEL = re.compile(r"(?!oncue)[a-z][a-z0-9_-]{0,62}", re.ASCII)
_VALUE = re.compile(r"[a-z0-9_-]{0,63}", re.ASCII)


class _Declared(msgspec.Struct, frozen=True, omit_defaults=True):
    lease: float
    retention: float | None = None
    tags: dict[str, str] = {}


_decode = msgspec.json.Decoder(_Declared).decode


def labels(spec: QueueSpec) -> dict[str, str]:
    """Raise `InvalidValueError` for more tags than a queue can have."""
    raw = msgspec.json.encode(_Declared(spec.lease, spec.retention, dict(sorted(spec.tags.items()))))
    text = base64.b32encode(raw).decode().rstrip("=").lower()
    found = {
        f"{_PIECE}{number}": text[start : start + _LONGEST]
        for number, start in enumerate(range(0, len(text), _LONGEST))
    }
    if len(found) > _MOST:
        raise InvalidValueError(
            f"queue {spec.name!r}: its tags take {len(raw)} bytes, and there is room for about 2400"
        )
    for name, value in spec.tags.items():
        if len(found) < _MOST and _LABEL.fullmatch(name) and _VALUE.fullmatch(value):
            found[name] = value
    return found


def is_declared(labels: Mapping[str, str]) -> bool:
    """Whether OnCue made it."""
    return f"{_PIECE}0" in labels


def spec(name: str, labels: Mapping[str, str], *, fifo: bool) -> QueueSpec:
    """As the queue was declared; raise `IncompatibleStoreError` for labels that another version wrote."""
    text = ""
    while piece := labels.get(f"{_PIECE}{len(text) // _LONGEST}"):
        text += piece
        if len(piece) < _LONGEST:
            break
    try:
        found = _decode(base64.b32decode(text.upper() + "=" * (-len(text) % 8)))
    except (binascii.Error, msgspec.MsgspecError) as error:
        raise IncompatibleStoreError(f"the labels of queue {name!r} were written by another version") from error
    return QueueSpec(name=name, lease=found.lease, fifo=fifo, retention=found.retention, tags=found.tags)
