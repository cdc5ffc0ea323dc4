"""What was asked in one moment, as one call of a script, and what comes of it."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from oncue.core.errors import LeaseLostError, QueueNotFoundError, TransportError, again
from oncue.core.message import Send, check_delay
from oncue.transports.redis.codec import encode
from oncue.transports.redis.faults import fault, said
from oncue.transports.redis.scripts import TURN

if TYPE_CHECKING:
    from oncue.transports.redis.subscription import RedisLease, RedisSubscription

CLAIMED = 8 * 1024 * 1024
"""Bytes that one turn claims, if not a single message is larger."""
_BEFORE = 2
"""Arguments before the payloads."""

_pack = msgspec.msgpack.Encoder().encode


class Kind(IntEnum):
    """What a lease is turned into; the numbers are the script's."""

    ACK = 0
    NACK = 1
    RELEASE = 2
    EXTEND = 3
    HOP = 4


class Parcel(NamedTuple):
    """What goes to one queue: payloads, and payloads with their delays in microseconds."""

    ready: list[bytes]
    delayed: list[tuple[int, bytes]]


Parcels = Mapping[str, Parcel]


class Delivery:
    """A send, whose future is set when all of it is stored."""

    __slots__ = ("count", "future", "parcels", "size")

    def __init__(self, sends: Sequence[Send], future: Future[None]) -> None:
        self.parcels, self.size = parcels_of(sends)
        self.count = len(sends)
        self.future = future


class Settle:
    """One lease to be settled or extended. Nobody waits for it where there is no future."""

    __slots__ = ("argument", "future", "kind", "lease", "parcels")

    def __init__(
        self,
        kind: Kind,
        lease: RedisLease,
        future: Future[None] | None = None,
        *,
        argument: int = 0,
        parcels: Parcels | None = None,
    ) -> None:
        self.kind = kind
        self.lease = lease
        self.future = future
        self.argument = argument
        self.parcels = parcels


class Claim(NamedTuple):
    """What a subscription asks for; with nothing to take it only says that it does not wait any more."""

    subscription: RedisSubscription
    most: int
    size: int
    suspects: bool
    token: str


class Turn:
    """The requests of one call. `args` is the call; then comes either `apply` or `fail`."""

    def __init__(self, prefix: str, shown: str) -> None:
        self.deliveries: list[Delivery] = []
        self.settles: list[Settle] = []
        self.claims: list[Claim] = []
        self._prefix = prefix
        self._shown = shown
        self._keys: dict[str, int] = {}
        self._payloads: list[bytes] = []
        self._places: list[list[Settle]] = []

    def args(self) -> list[bytes | str | int]:
        """The command that does it all."""
        sends = self._sends()
        settles = self._settles()
        claims = [
            (
                self._key(claim.subscription.name),
                claim.most,
                claim.size,
                int(claim.suspects),
                claim.token,
                claim.subscription.id,
            )
            for claim in self.claims
        ]
        document = _pack((sends, settles, claims))
        keys = [self._prefix + name for name in self._keys]
        return [b"EVALSHA", TURN.digest.encode(), len(keys), *keys, document, CLAIMED, *self._payloads]

    def apply(self, answer: Sequence[Any], problem: TransportError | None = None) -> list[Delivery]:
        """Tell all who asked what came of it; those whose sends have to be tried once more, because of others.

        With a `problem` what was changed may not last, and whoever asked for a change is told so.
        """
        sent, settled, claimed = answer
        if problem is not None:
            self._refuse(problem)
            self._apply_claims(claimed)
            return []
        repeat = self._apply_sends(sent)
        names = list(self._keys)
        for settles, (lost, absent) in zip(self._places, settled, strict=True):
            problems: dict[int, TransportError] = {}
            for place in lost:
                lease = settles[place - 1].lease
                problems[place - 1] = LeaseLostError(lease.queue, lease.message.id)
            for place, key in zip(absent[::2], absent[1::2], strict=True):
                problems[place - 1] = QueueNotFoundError(names[key - 1])
            for index, settle in enumerate(settles):
                settle.lease.settled(settle, problems.get(index) if problems else None)
        self._apply_claims(claimed)
        return repeat

    def fail(self, answer: Exception) -> None:
        """Tell all who asked that it came to nothing, as far as anybody knows."""
        error = fault(answer, self._shown)
        self._refuse(error)
        for claim in self.claims:
            if claim.most:
                claim.subscription.failed(error)

    def _refuse(self, error: TransportError) -> None:
        for delivery in self.deliveries:
            _refuse(delivery.future, error)
        for settle in self.settles:
            settle.lease.settled(settle, again(error))

    def _apply_claims(self, claimed: Sequence[Any]) -> None:
        for claim, found in zip(self.claims, claimed, strict=True):
            claim.subscription.claimed(claim, found)

    def _apply_sends(self, sent: Any) -> list[Delivery]:
        if isinstance(sent, bytes):
            error = said(sent.decode(errors="replace"), self._shown)
            for delivery in self.deliveries:
                _refuse(delivery.future, error)
            return []
        if sent == 0:
            for delivery in self.deliveries:
                if not delivery.future.done():
                    delivery.future.set_result(None)
            return []
        names = list(self._keys)
        absent = [names[key - 1] for key in sent]
        repeat = []
        for delivery in self.deliveries:
            missing = next((name for name in absent if name in delivery.parcels), None)
            if missing is None:
                repeat.append(delivery)
            else:
                _refuse(delivery.future, QueueNotFoundError(missing))
        return repeat

    def _key(self, name: str) -> int:
        return self._keys.setdefault(name, len(self._keys) + 1)

    def _groups(self, parcels: Parcels) -> list[tuple[int, int, int, list[int]]]:
        groups = []
        for name, (ready, delayed) in parcels.items():
            groups.append(
                (self._key(name), len(self._payloads) + _BEFORE + 1, len(ready), [delay for delay, _ in delayed])
            )
            self._payloads += ready
            self._payloads += [payload for _, payload in delayed]
        return groups

    def _sends(self) -> list[tuple[int, int, int, list[int]]]:
        if not self.deliveries:
            return []
        merged: dict[str, Parcel] = {}
        for delivery in self.deliveries:
            for name, (ready, delayed) in delivery.parcels.items():
                parcel = merged.get(name)
                if parcel is None:
                    parcel = merged[name] = Parcel([], [])
                parcel.ready.extend(ready)
                parcel.delayed.extend(delayed)
        return self._groups(merged)

    def _settles(self) -> list[Any]:
        queues: dict[str, tuple[list[Settle], list[Settle]]] = {}
        for settle in self.settles:
            found = queues.get(settle.lease.queue)
            if found is None:
                found = queues[settle.lease.queue] = ([], [])
            found[settle.kind != Kind.ACK].append(settle)
        documents = []
        for name, (acks, others) in queues.items():
            self._places.append(acks + others)
            items = [
                (each.lease.member, int(each.kind), self._groups(each.parcels) if each.parcels else each.argument)
                for each in others
            ]
            documents.append((self._key(name), [each.lease.member for each in acks], items))
        return documents


def parcels_of(sends: Iterable[Send]) -> tuple[Parcels, int]:
    """`sends` by queue, and their size in bytes; raise `InvalidValueError` or `MessageTooLargeError`."""
    parcels: dict[str, Parcel] = {}
    size = 0
    for send in sends:
        payload = encode(send)
        size += len(payload)
        parcel = parcels.get(send.queue)
        if parcel is None:
            parcel = parcels[send.queue] = Parcel([], [])
        if send.delay:
            parcel.delayed.append((microseconds(send.delay), payload))
        else:
            parcel.ready.append(payload)
    return parcels, size


def microseconds(seconds: float) -> int:
    """Raise `InvalidValueError` for what is no delay."""
    return round(check_delay(seconds) * 1_000_000)


def _refuse(future: Future[None], error: TransportError) -> None:
    if not future.done():
        future.set_exception(again(error))
