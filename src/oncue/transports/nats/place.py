"""Where a queue is: its stream, subjects and consumer. Pure.

A queue is a stream of its own, so that it can be purged, deleted and made anew without touching any other, has its own replicas
and limits, and is seen by name in every tool. Its messages have one subject, and those that are delayed another one each.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from oncue.core.errors import IncompatibleStoreError, InvalidValueError
from oncue.transports.base import QueueSpec
from oncue.transports.nats.address import Address

CONSUMER, LATER = "oncue", "oncue-later"
SLACK = 1.25
"""The server waits longer by this than a lease lasts here: what it delivered may have been on its way for a while."""
EXPIRES = 60.0
"""Seconds for which a request for messages waits."""
_MOST_DESCRIPTION = 4096
_MARK = "OnCue: "
_WAITING = 8192
"""So many may wait for messages of a queue at the same time."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(QueueSpec).decode


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a queue is, and how.

    wait: seconds after which the server delivers once more what nobody acknowledged.
    delays: whether there are subjects for delayed messages. schedules: whether the server publishes what is due.
    mover: whether there is a consumer for those messages that one of us moves when they are due.
    skew: how far the server's clock is ahead of ours, in seconds.
    """

    spec: QueueSpec
    stream: str
    subject: bytes
    consumer: str
    wait: float
    delays: bool
    schedules: bool
    mover: bool
    skew: float = 0.0

    @property
    def later(self) -> bytes:
        """A new subject for a delayed message."""
        return b"%b.later.%b" % (self.subject, secrets.token_hex(8).encode())


def stream_name(address: Address, queue: str) -> str:
    """No two queues have one name: neither prefixes have hyphens nor queues equals signs."""
    return f"{address.prefix}-{_word(queue)}"


def subject_of(address: Address, queue: str) -> str:
    return f"{address.prefix}.{_word(queue)}"


def stream_config(address: Address, spec: QueueSpec, *, schedules: bool) -> dict[str, Any]:
    """How the stream of a queue is made. Raise `InvalidValueError` where its tags are too long."""
    subject = subject_of(address, spec.name)
    config: dict[str, Any] = {
        "name": stream_name(address, spec.name),
        "subjects": [subject, f"{subject}.later.*"],
        "description": described("", spec),
        "retention": "workqueue",
        "storage": "file",
        "discard": "old",  # of nothing: there are no limits
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "num_replicas": address.replicas,
        "duplicate_window": nanoseconds(address.duplicates),
        # What is left of an earlier stream of this name must not acknowledge what is in this one.
        "first_seq": time.time_ns() // 1000,
    }
    if schedules:
        config["allow_msg_schedules"] = True
    return config


def consumer_config(name: str, subject: str, wait: float) -> dict[str, Any]:
    """How a consumer is made: it never gives up on a message, and never stops for those that are under way."""
    return {
        "durable_name": name,
        "description": "leases of OnCue",
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": nanoseconds(wait),
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": _WAITING,
        "filter_subject": subject,
        "replay_policy": "instant",
    }


def new_consumer_name(config: Mapping[str, Any]) -> str:
    """One name for all time where the stream numbers its messages unlike an earlier one; else a new one."""
    return CONSUMER if config.get("first_seq", 0) > 1 else f"{CONSUMER}-{secrets.token_hex(4)}"


def check_usable(config: Mapping[str, Any], queue: str, subject: str) -> None:
    """Raise `IncompatibleStoreError` for a stream of others that can be no queue."""
    if config.get("retention") != "workqueue":
        raise IncompatibleStoreError(
            f"queue {queue!r}: the retention of stream {config['name']!r} is {config.get('retention')!r}, expected 'workqueue'"
        )
    if config.get("no_ack"):
        raise IncompatibleStoreError(
            f"queue {queue!r}: stream {config['name']!r} does not answer what it stores; turn its no-ack off"
        )
    if subject not in config.get("subjects", ()):
        raise IncompatibleStoreError(
            f"queue {queue!r}: stream {config['name']!r} does not have the subject {subject!r}"
        )


def check_consumer(config: Mapping[str, Any], queue: str) -> None:
    """Raise `IncompatibleStoreError` for a consumer of others that would lose messages, or keep them for ever, silently."""
    expires = config.get("max_expires", 0)
    for wrong, problem in (
        (config.get("deliver_subject"), "is a push consumer; a pull consumer is needed"),
        (config.get("max_deliver", -1) > 0, "gives up on messages silently: set its max deliver to -1"),
        (config.get("headers_only"), "delivers no bodies"),
        (config.get("priority_groups"), "has priority groups, which are not asked for here"),
        (config.get("max_batch", 0) > 0, "limits how many messages may be asked for: remove its max request batch"),
        (config.get("max_bytes", 0) > 0, "limits how many bytes may be asked for: remove its max request bytes"),
        (
            0 < expires < nanoseconds(EXPIRES),
            f"does not let requests wait for {EXPIRES:g} s: remove its max request expires",
        ),
    ):
        if wrong:
            name = config.get("durable_name") or config.get("name")
            raise IncompatibleStoreError(f"queue {queue!r}: consumer {name!r} {problem}")


def described(text: str, spec: QueueSpec) -> str:
    """A stream's description that holds the queue's settings as well. Raise `InvalidValueError`."""
    own = text.partition(_MARK)[0].rstrip()
    found = f"{own}\n{_MARK}{_encode(spec).decode()}".lstrip()
    if len(found.encode()) > _MOST_DESCRIPTION:
        raise InvalidValueError(
            f"queue {spec.name!r}: tags that take more than {_MOST_DESCRIPTION} bytes, with all else, cannot be kept"
        )
    return found


def read_spec(config: Mapping[str, Any]) -> QueueSpec | None:
    """What a queue was declared as; None for a stream that others made."""
    _, mark, text = str(config.get("description", "")).partition(_MARK)
    if not mark:
        return None
    try:
        return _decode(text)
    except msgspec.MsgspecError as error:
        raise IncompatibleStoreError(
            f"stream {config.get('name')!r}: its description was written by another version, or by others: {error}"
        ) from error


def nanoseconds(seconds: float) -> int:
    return max(1_000_000, round(seconds * 1e9))


def _word(queue: str) -> str:
    """Dots separate the words of a subject, and no stream's name may have any."""
    return queue.replace(".", "=")
