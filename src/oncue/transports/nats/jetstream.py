"""Asks JetStream for one thing at a time: streams, consumers, and single messages."""

from __future__ import annotations

import asyncio
import base64
from asyncio import Future
from collections.abc import Mapping
from typing import Any

import msgspec

from oncue.core.errors import ConnectionLostError, IncompatibleStoreError
from oncue.transports.nats.codec import status
from oncue.transports.nats.core import ClosedError, Connection, DeniedError, Refusal, RefusedError, SilentError
from oncue.transports.nats.faults import fault
from oncue.transports.nats.link import Link

_NOBODY = 503
_PAUSE = 0.1
"""Seconds between attempts, while a server that starts, or elects, listens to nobody yet."""

_AGAIN = 1.5
"""Seconds without an answer after which something is asked once more."""

Document = dict[str, Any]


class State(msgspec.Struct):
    """What is in a stream."""

    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class StreamInfo(msgspec.Struct):
    """A stream as it is. `ts` is the server's time, where it tells that."""

    config: Document
    state: State
    ts: str | None = None


class Reached(msgspec.Struct):
    """Up to where something is so, by the consumer's count and by the stream's."""

    consumer_seq: int = 0
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct):
    """A consumer as it is. Up to `ack_floor` everything was acknowledged."""

    config: Document
    delivered: Reached
    ack_floor: Reached
    num_ack_pending: int = 0
    num_pending: int = 0
    num_waiting: int = 0


class Stored(msgspec.Struct):
    """A message as it lies in a stream."""

    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""

    @property
    def header(self) -> bytes:
        return base64.b64decode(self.hdrs)

    @property
    def body(self) -> bytes:
        return base64.b64decode(self.data)


class _Message(msgspec.Struct):
    message: Stored


class _Names(msgspec.Struct):
    consumers: list[str] | None = None


class _Streams(msgspec.Struct):
    streams: list[StreamInfo] | None = None
    total: int = 0


class _Purged(msgspec.Struct):
    purged: int = 0


class _Failed(msgspec.Struct):
    error: Refusal | None = None


class JetStream:
    """Over the one connection. All raise errors of ours, or `RefusedError` with what the server says against it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._api = link.address.api

    async def ask(self, subject: str, document: Mapping[str, Any] | None = None) -> bytes:
        """The answer. May be cancelled, and is done for all that."""
        shown, loop = self.link.address.shown, asyncio.get_running_loop()
        body = b"" if document is None else msgspec.json.encode(document)
        until = loop.time() + self.link.address.timeout
        while True:
            connection = await self.link.connection()
            try:
                header, found = await _answer(connection, f"{self._api}.{subject}".encode(), body)
            except (ClosedError, DeniedError, SilentError) as error:
                raise fault(error, shown) from error
            if status(header)[0] != _NOBODY:
                break
            if not connection.info.get("jetstream") and self.link.address.domain is None:
                raise IncompatibleStoreError(f"{shown}: the server runs without JetStream")
            if loop.time() > until:
                raise ConnectionLostError(f"{shown}: JetStream does not answer")
            await asyncio.sleep(_PAUSE)
        failed = msgspec.json.decode(found, type=_Failed)
        if failed.error is not None:
            raise RefusedError(failed.error)
        return found

    async def acknowledge(self, reply: bytes) -> None:
        """Have what was delivered with that reply subject deleted; returns when it is."""
        connection = await self.link.connection()
        try:
            await _answer(connection, reply, b"")
        except (ClosedError, DeniedError, SilentError) as error:
            raise fault(error, self.link.address.shown) from error

    async def account(self) -> Document:
        found: Document = msgspec.json.decode(await self.ask("INFO"))
        return found

    async def stream(self, name: str, subject: str | None = None) -> StreamInfo:
        """How it is; with the numbers of messages under subjects that match, if asked for."""
        document = None if subject is None else {"subjects_filter": subject}
        return msgspec.json.decode(await self.ask(f"STREAM.INFO.{name}", document), type=StreamInfo)

    async def create_stream(self, config: Mapping[str, Any]) -> StreamInfo:
        return msgspec.json.decode(await self.ask(f"STREAM.CREATE.{config['name']}", config), type=StreamInfo)

    async def update_stream(self, config: Mapping[str, Any]) -> None:
        await self.ask(f"STREAM.UPDATE.{config['name']}", config)

    async def delete_stream(self, name: str) -> None:
        await self.ask(f"STREAM.DELETE.{name}")

    async def streams(self, subject: str) -> list[StreamInfo]:
        """All that have subjects which match."""
        found: list[StreamInfo] = []
        while True:
            answer = await self.ask("STREAM.LIST", {"subject": subject, "offset": len(found)})
            page = msgspec.json.decode(answer, type=_Streams)
            found += page.streams or []
            if not page.streams or len(found) >= page.total:
                return found

    async def purge(self, name: str, subject: str, before: int | None = None) -> int:
        """Drop all messages under a subject, or those whose numbers are below `before`; how many those were."""
        document: Document = {"filter": subject} if before is None else {"filter": subject, "seq": before}
        return msgspec.json.decode(await self.ask(f"STREAM.PURGE.{name}", document), type=_Purged).purged

    async def message(self, name: str, sequence: int, subject: str) -> Stored:
        """The first one under that subject, from that number on."""
        answer = await self.ask(f"STREAM.MSG.GET.{name}", {"seq": sequence, "next_by_subj": subject})
        return msgspec.json.decode(answer, type=_Message).message

    async def consumer(self, stream: str, name: str) -> ConsumerInfo:
        return msgspec.json.decode(await self.ask(f"CONSUMER.INFO.{stream}.{name}"), type=ConsumerInfo)

    async def create_consumer(self, stream: str, config: Mapping[str, Any]) -> ConsumerInfo:
        document = {"stream_name": stream, "config": config}
        answer = await self.ask(f"CONSUMER.DURABLE.CREATE.{stream}.{config['durable_name']}", document)
        return msgspec.json.decode(answer, type=ConsumerInfo)

    async def consumers(self, stream: str) -> list[str]:
        answer = await self.ask(f"CONSUMER.NAMES.{stream}", {"offset": 0})
        return msgspec.json.decode(answer, type=_Names).consumers or []


async def _answer(connection: Connection, subject: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Headers and body of what is answered first, until the time is over: whoever would have answered may be gone, and
    another server of the cluster does it when that has been elected. All that is asked here may be asked twice."""
    loop = asyncio.get_running_loop()
    future: Future[tuple[bytes, bytes]] = loop.create_future()

    def answer(header: bytes, body: bytes, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result((header, body))
        else:
            future.set_exception(error)

    try:
        while not future.done():
            connection.ask(subject, body, answer)
            await asyncio.wait([future], timeout=_AGAIN)
        return await future
    finally:
        future.cancel()
