"""What queues there are and how they were declared, in a log that all connections read and write.

The server tells nobody over AMQP which queues it has, and knows nothing of leases. So each declaration is a record in a stream,
an append-only queue from which nothing is ever taken. Of several declarations of one name the first one in the log counts, until
a record says that the queue is gone.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Mapping
from typing import Any

import msgspec
from pamqp import commands

from oncue.core.errors import ConnectionLostError, IncompatibleStoreError
from oncue.transports.base import QueueSpec
from oncue.transports.rabbitmq.amqp import (
    Channel,
    ChannelClosed,
    ClosedError,
    Delivery,
    decode_properties,
    encode_properties,
)
from oncue.transports.rabbitmq.calls import Calls, until_ready
from oncue.transports.rabbitmq.codec import Parcel
from oncue.transports.rabbitmq.faults import NOT_FOUND, fault
from oncue.transports.rabbitmq.publisher import Publisher

STREAM = "oncue.queues"
_OFFSET = "x-stream-offset"
_AT_A_TIME = 1000
_EMPTY = 0.1
"""Seconds after which a log that shows nothing is taken to be empty; if it is not, a record that says nothing does no harm."""


class Record(msgspec.Struct, frozen=True):
    """A queue as it was declared, or without `spec` that it is gone; without a name it says nothing."""

    name: str
    spec: QueueSpec | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode
_NOTHING = Record("")


class Registry:
    """A view of the log, which is brought up to date whenever it is asked."""

    def __init__(self, calls: Calls, publisher: Publisher) -> None:
        self._calls = calls
        self._publisher = publisher
        self._shown = calls.link.address.shown
        self._timeout = calls.link.address.timeout
        self._lock = asyncio.Lock()
        self._channel: Channel | None = None
        self._specs: dict[str, QueueSpec] = {}
        self._next = 0

    async def read(self) -> Mapping[str, QueueSpec]:
        """All queues by name, with whatever was written before this was called."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout):
                    await until_ready(self._catch_up_or_begin)
            except (ClosedError, TimeoutError) as error:
                self._drop()
                raise fault(error, self._shown) from error
            except BaseException:
                self._drop()
                raise
            return self._specs

    async def write(self, *records: Record) -> None:
        """Return when they are stored."""
        properties = encode_properties(content_type="application/json", delivery_mode=2)
        await self._publisher.send([Parcel("", STREAM, properties, _encode(record)) for record in records])

    def close(self) -> None:
        """Leave the channel; comes last."""
        self._drop()

    async def _catch_up_or_begin(self) -> None:
        try:
            await self._catch_up()
        except ChannelClosed as error:
            if error.code != NOT_FOUND or "no queue" not in error.text:
                raise
            await self._catch_up()  # somebody deleted it: it is made anew

    async def _catch_up(self) -> None:
        if self._channel is None or self._channel.closed.done():
            stream: dict[str, Any] = {"x-queue-type": "stream"}
            await self._calls.try_to(commands.Queue.Declare(queue=STREAM, durable=True, arguments=stream))
            connection = await self._calls.link.connection()
            self._channel = await connection.channel()
        last = await self._read(self._channel, "last", within=_EMPTY)
        if not last:
            await self.write(_NOTHING)
            last = await self._read(self._channel, "last")
        end = _offset(last[-1]) + 1
        if end < self._next:  # somebody deleted it, and it begins anew
            self._specs, self._next = {}, 0
        if _offset(last[0]) > self._next:
            self._take(await self._read(self._channel, self._next, end))
        self._take(last)

    async def _read(
        self, channel: Channel, start: str | int, end: int | None = None, *, within: float | None = None
    ) -> list[Delivery]:
        """What the log has from `start` up to `end`, or of its last chunk, all of which is there when the answer to the next
        call is."""
        found: list[Delivery] = []
        enough: Future[None] = asyncio.get_running_loop().create_future()

        def deliver(delivery: Delivery) -> None:
            found.append(delivery)
            if len(found) % (_AT_A_TIME // 2) == 0:
                channel.ack(delivery.tag, multiple=True)
            if not enough.done() and (end is None or _offset(delivery) + 1 >= end):
                enough.set_result(None)

        def cancelled(_tag: str) -> None:
            if not enough.done():
                enough.set_exception(ConnectionLostError(f"{self._shown}: the stream {STREAM!r} was deleted"))

        tag = await channel.consume(STREAM, deliver, cancelled, prefetch=_AT_A_TIME, arguments={_OFFSET: start})
        watched: list[Future[Any]] = [enough, channel.closed]
        await asyncio.wait(watched, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        if enough.done():
            enough.result()
        await channel.cancel(tag)
        if found:
            channel.ack(found[-1].tag, multiple=True)
        return found

    def _take(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            offset = _offset(delivery)
            if offset != self._next:
                continue
            try:
                record = _decode(delivery.body)
            except msgspec.MsgspecError as error:
                text = f"{self._shown}: the stream {STREAM!r} was written by another version, or by others: {error}"
                raise IncompatibleStoreError(text) from error
            self._next = offset + 1
            if record.spec is None:
                self._specs.pop(record.name, None)
            else:
                self._specs.setdefault(record.name, record.spec)

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.leave()
            self._channel = None


def _offset(delivery: Delivery) -> int:
    headers = decode_properties(delivery.properties).headers or {}
    offset = headers.get(_OFFSET)
    if not isinstance(offset, int):
        raise IncompatibleStoreError(f"queue {STREAM!r} is no stream")
    return offset
