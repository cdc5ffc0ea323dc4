"""Names there: the same as here where Pub/Sub takes them, else behind a prefix that no name here can have."""

from __future__ import annotations

import hashlib
import re

from oncue.core.message import check_queue_name

_OURS = "oncue~"
_LATER = "~later"
LOST = "oncue~lost"
"""The topic, and its subscription, for what was delivered too often while its queue has no declared dead letters."""
_PLAIN = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._-]{2,}", re.ASCII)
_LONGEST_KEY = 1024
_NO_KEY, _SUMMED = "oncue.none", "oncue."


def there(name: str) -> str:
    """The name of a queue in Pub/Sub; raise `InvalidValueError` for one that no queue can have."""
    check_queue_name(name)
    return name if _PLAIN.fullmatch(name) else _OURS + name


def here(name: str) -> str:
    """The queue of this name in Pub/Sub."""
    return name.removeprefix(_OURS)


def later(name: str) -> str:
    """The name there, of topic and subscription, for what is delayed in the queue called `name` there."""
    return name + _LATER


def order_of(key: str | None) -> str:
    """The ordering key of messages of this key; those without one have one as well, and stay in order too."""
    if key is None:
        return _NO_KEY
    raw = key.encode("utf-8", "replace")
    if key and len(raw) <= _LONGEST_KEY and not key.startswith(_SUMMED):
        return key
    return _SUMMED + hashlib.blake2b(raw, digest_size=16).hexdigest()
