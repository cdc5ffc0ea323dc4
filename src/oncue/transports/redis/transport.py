"""The transport itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from oncue.core.errors import (
    AccessDeniedError,
    IncompatibleStoreError,
    QueueNotFoundError,
    TransportClosedError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import Depth, Features, QueueSpec
from oncue.transports.checks import check_equal, check_prefetch, check_spec
from oncue.transports.examination import Remark
from oncue.transports.redis.address import Address, parse
from oncue.transports.redis.codec import MAX_BODY, decode
from oncue.transports.redis.desk import Desk
from oncue.transports.redis.examination import SECTIONS, read_info, remarks
from oncue.transports.redis.scripts import DECLARE, DELETE, DEPTH, PEEK, PURGE, READ
from oncue.transports.redis.subscription import RedisSubscription
from oncue.transports.redis.turn import Delivery, microseconds

FEATURES = Features(
    durable=True,
    shared=True,
    atomic_ack=True,
    free_release=True,
    native_delay=True,
    longest_delay=None,
    fifo=True,
    lease_cap=None,
    max_body=MAX_BODY,
    headers=True,
    depth=frozenset({"ready", "leased", "delayed"}),
    peek=True,
    retention=True,
)

MOST_PEEKED = 200_000
"""Messages that are shown at once, whatever the limit: the server does nothing else while it lists them."""
_PAGE, _PEEKED = 1000, 4 * 1024 * 1024
"""Messages, and bytes, that one answer holds of what is looked at, about."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(QueueSpec).decode


async def open_redis(url: str) -> RedisTransport:
    """Open the server that `url` names, such as `redis://localhost:6379/0`; `rediss:` is with TLS.

    Raise `InvalidValueError` for another URL, `ConnectionLostError` when nobody answers, and `AccessDeniedError` for wrong
    credentials.
    """
    transport = RedisTransport(parse(url))
    try:
        await transport.desk.ask(b"EXISTS", transport.desk.index)
    except BaseException:
        await transport.abandon()
        raise
    return transport


class RedisTransport:
    """One connection to a server, bound to the event loop that it was opened in."""

    features = FEATURES

    def __init__(self, address: Address) -> None:
        self.desk = Desk(address)
        self._subscriptions: set[RedisSubscription] = set()
        self._running = asyncio.create_task(self.desk.link.run())
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def declare(self, spec: QueueSpec) -> None:
        self._check_open()
        check_spec(spec)
        lease = _length(spec.lease)
        kept = "" if spec.retention is None else _length(spec.retention)
        have = await self.desk.call(
            DECLARE, spec.name, spec.name, _encode(spec), lease, kept, int(spec.fifo), index=True
        )
        check_equal(_read(have), spec)

    async def delete(self, queue: str) -> None:
        self._check_open()
        await self.desk.call(DELETE, queue, queue, index=True)

    async def queues(self) -> Sequence[QueueSpec]:
        self._check_open()
        found = await self.desk.ask(b"HVALS", self.desk.index)
        return sorted(map(_read, found), key=lambda spec: spec.name)

    async def send(self, *sends: Send) -> None:
        self._check_open()
        if not sends:
            return
        delivery = Delivery(sends, self.desk.loop.create_future())
        self.desk.send(delivery)
        await delivery.future

    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[RedisSubscription]:
        self._check_open()
        check_prefetch(prefetch)
        stored = await self.desk.ask(b"HGET", self.desk.index, queue)
        self._check_open()
        if stored is None:
            raise QueueNotFoundError(queue)
        subscription = RedisSubscription(self.desk, self._check_open, queue, prefetch, _read(stored).lease)
        self.desk.join(subscription)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.leave()

    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        limit = max(0, min(limit, MOST_PEEKED))
        kinds = await self._ask(PEEK, queue, limit)
        numbers = sorted({int(entry.partition(b":")[0]) for kind in kinds for entry in kind})
        found: list[Message] = []
        start = 0
        while start < len(numbers) and len(found) < limit:
            page = numbers[start : start + min(_PAGE, limit - len(found))]
            looked, *payloads = await self._ask(READ, queue, _PEEKED, *page)
            found += map(decode, payloads)
            start += looked
        return found

    async def depth(self, queue: str) -> Depth:
        return Depth(*await self._ask(DEPTH, queue))

    async def purge(self, queue: str) -> int:
        dropped: int = await self._ask(PURGE, queue)
        return dropped

    async def examine(self) -> Sequence[Remark]:
        self._check_open()
        info: dict[str, str] = {}
        try:
            for section in SECTIONS:
                info |= read_info(await self.desk.ask(b"INFO", section))
        except AccessDeniedError:
            return [Remark("server", "note", "its settings are not shown to this user: the right to INFO is missing")]
        try:
            found = await self.desk.ask(b"CONFIG", b"GET", b"appendfsync")
        except (AccessDeniedError, IncompatibleStoreError):  # hosted servers have no such command for anybody
            found = None
        return remarks(info, _setting(found))

    async def close(self) -> None:
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def abandon(self) -> None:
        """Close at once; whatever was asked for stays without an answer."""
        self._closed = True
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def _close(self) -> None:
        try:
            for subscription in list(self._subscriptions):
                await subscription.leave()
            await self.desk.finish()
        finally:
            await self.abandon()

    async def _ask(self, script: Any, queue: str, *arguments: int) -> Any:
        self._check_open()
        answer = await self.desk.call(script, queue, *arguments)
        if answer is None:
            raise QueueNotFoundError(queue)
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise TransportClosedError


def _length(seconds: float) -> int:
    return max(1, microseconds(seconds))


def _setting(found: Any) -> str | None:
    """The value in an answer to `CONFIG GET`: name and value, as a list in the older protocol."""
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=False) if found else ()
    return next((value.decode() for _, value in pairs), None)


def _read(stored: bytes) -> QueueSpec:
    try:
        return _decode(stored)
    except msgspec.MsgspecError as error:
        raise IncompatibleStoreError(
            f"the list of queues was written by another version, or by others: {error}"
        ) from error
