"""Names of queues there: the same where SQS takes them, else with a sum of the name in them, so that no two are alike."""

from __future__ import annotations

import hashlib
import re

from oncue.core.errors import InvalidValueError
from oncue.core.message import check_queue_name

FIFO = ".fifo"
"""What the names of FIFO queues have to end with."""
_LONGEST = 80 - len(FIFO)
_PLAIN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_OTHER = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)
_MARK = "_oncue_"
_SUM = 26
_GROUP = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~_]{1,128}", re.ASCII)
_NO_KEY, _SUMMED = "oncue.none", "oncue."


def there(name: str) -> str:
    """The name of a queue in SQS, without what a FIFO queue's ends with.

    Raise `InvalidValueError` for one that no queue can have, and for one that ends with that.
    """
    check_queue_name(name)
    if name.endswith(FIFO):
        raise InvalidValueError(
            f"queue name {name!r}: a FIFO queue is called {name.removesuffix(FIFO)!r} here, without {FIFO!r} at its end"
        )
    if len(name) <= _LONGEST and _PLAIN.fullmatch(name) and _MARK not in name:
        return name
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest())
    letters = ""
    for _ in range(_SUM):
        number, index = divmod(number, 32)
        letters += "abcdefghijklmnopqrstuvwxyz234567"[index]
    return f"{_OTHER.sub('-', name)[: _LONGEST - _SUM - len(_MARK)]}{_MARK}{letters}"


def group_of(key: str | None) -> str:
    """The group of a FIFO queue that messages of this key are in; those without one have a group as well."""
    if key is None:
        return _NO_KEY
    return key if _GROUP.fullmatch(key) and not key.startswith(_SUMMED) else f"{_SUMMED}{_sum(key)}"


def token_of(id: str, cause: str) -> str:
    """By what a FIFO queue knows a message that is sent twice within five minutes: its id, and what it was sent for.

    A message that is put back, or sent on under the same id, is sent for another one each time, and so is not taken for a
    repetition; whoever repeats an acknowledgement sends for the same one.
    """
    if not cause and _GROUP.fullmatch(id) and not id.startswith(_SUMMED):
        return id
    return f"{_SUMMED}{_sum(f'{cause} {id}')}"


def _sum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
