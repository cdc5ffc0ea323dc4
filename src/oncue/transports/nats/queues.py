"""Queues: made, compared, counted, looked at and deleted."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from oncue.core.errors import ConnectionLostError, QueueNotFoundError
from oncue.core.message import Message
from oncue.transports.base import Depth, QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.nats.codec import decode
from oncue.transports.nats.core import RefusedError
from oncue.transports.nats.faults import (
    CONSUMER_EXISTS,
    CONSUMER_NOT_FOUND,
    CONSUMER_NOT_UNIQUE,
    MESSAGE_NOT_FOUND,
    STREAM_EXISTS,
    STREAM_NOT_FOUND,
    fault,
)
from oncue.transports.nats.jetstream import ConsumerInfo, JetStream, StreamInfo
from oncue.transports.nats.place import (
    CONSUMER,
    LATER,
    SLACK,
    Place,
    check_consumer,
    check_usable,
    consumer_config,
    described,
    new_consumer_name,
    read_spec,
    stream_config,
    stream_name,
    subject_of,
)

_log = logging.getLogger("oncue.transports.nats")

_SCHEDULES = (2, 12)
"""Servers of this version and newer publish what is due by themselves."""
_FIRST_SEQUENCE = (2, 10)
MOST_PEEKED = 10_000
"""Messages that are shown at once, whatever the limit."""
_LOOKS = 20
"""So often stream and consumer are asked until both tell the same."""
_CLOCKS = 0.05
"""Seconds. Clocks that differ by less are taken for the same."""


class Queues:
    """Keeps where queues are, until told to forget."""

    def __init__(self, jetstream: JetStream) -> None:
        self.jetstream = jetstream
        self._address = jetstream.link.address
        self._known: dict[str, Place] = {}

    async def declare(self, spec: QueueSpec) -> None:
        """Make it, or find that it is there with the same settings; raise `QueueMismatchError` if it has others."""
        name = spec.name
        schedules = await self._version() >= _SCHEDULES
        config = stream_config(self._address, spec, schedules=schedules)
        if await self._version() < _FIRST_SEQUENCE:
            del config["first_seq"]
        info = await self._find(name)
        if info is None:
            try:
                info = await self.jetstream.create_stream(config)
            except RefusedError as error:
                info = await self._find(name) if error.refusal.err_code == STREAM_EXISTS else None
                if info is None:
                    raise fault(error, self._address.shown) from error
        known = read_spec(info.config)
        if known is None:
            known = await self._adopt(info, spec)
        check_equal(known, spec)
        await self._locate(info, spec)

    async def delete(self, name: str) -> None:
        self._known.pop(name, None)
        try:
            await self.jetstream.delete_stream(stream_name(self._address, name))
        except RefusedError as error:
            if error.refusal.err_code != STREAM_NOT_FOUND:
                raise fault(error, self._address.shown) from error

    async def declared(self) -> Sequence[QueueSpec]:
        """Those that were declared and are there, by name."""
        try:
            streams = await self.jetstream.streams(f"{self._address.prefix}.*")
        except RefusedError as error:
            raise fault(error, self._address.shown) from error
        own = [each for each in streams if str(each.config["name"]).startswith(f"{self._address.prefix}-")]
        specs = [spec for each in own if (spec := read_spec(each.config)) is not None]
        return sorted(specs, key=lambda spec: spec.name)

    async def place(self, name: str) -> Place:
        """Where it is, as far as is known. Raise `QueueNotFoundError`."""
        return self._known.get(name) or await self.find(name)

    def known(self, name: str) -> Place | None:
        """Where it was when it was asked last."""
        return self._known.get(name)

    async def find(self, name: str) -> Place:
        """Where it is, with a consumer, which is made if somebody deleted it. Raise `QueueNotFoundError`."""
        self._known.pop(name, None)
        info = await self._find(name)
        if info is None:
            raise QueueNotFoundError(name)
        return await self._locate(info, read_spec(info.config))

    async def check_there(self, name: str) -> None:
        """Raise `QueueNotFoundError` if it is not."""
        if await self._find(name) is None:
            self._known.pop(name, None)
            raise QueueNotFoundError(name)

    def forget(self) -> None:
        """Ask anew where queues are."""
        self._known.clear()

    async def depth(self, name: str) -> Depth:
        """How many are ready, leased and delayed, at one moment."""
        place = await self.place(name)
        subject = place.subject.decode()
        for left in reversed(range(_LOOKS)):
            try:
                stream, consumer = await asyncio.gather(
                    self.jetstream.stream(place.stream, subject),
                    self.jetstream.consumer(place.stream, place.consumer),
                )
            except RefusedError as error:
                if not left or error.refusal.err_code not in {STREAM_NOT_FOUND, CONSUMER_NOT_FOUND}:
                    raise fault(error, self._address.shown) from error
                place = await self.find(name)
                continue
            there = (stream.state.subjects or {}).get(subject, 0)
            delayed = stream.state.messages - there
            if not left or (consumer.num_pending + consumer.num_ack_pending == there and delayed >= 0):
                ready = max(0, min(consumer.num_pending, there - consumer.num_ack_pending))
                return Depth(ready, consumer.num_ack_pending, max(0, delayed))
            if left == _LOOKS // 2:
                await self._sweep(name, stream, consumer)
        raise ConnectionLostError(f"{self._address.shown}: queue {name!r} is made and deleted all the time")

    async def look(self, name: str, limit: int) -> Sequence[Message]:
        """The first messages, whether or not somebody holds them."""
        place = await self.find(name)
        found: list[Message] = []
        sequence = 1
        while len(found) < min(limit, MOST_PEEKED):
            try:
                stored = await self.jetstream.message(place.stream, sequence, place.subject.decode())
            except RefusedError as error:
                if error.refusal.err_code == MESSAGE_NOT_FOUND:
                    break
                if error.refusal.err_code == STREAM_NOT_FOUND:
                    raise QueueNotFoundError(name) from error
                raise fault(error, self._address.shown) from error
            found.append(decode(stored.header, stored.body, stored.seq).message)
            sequence = stored.seq + 1
        return found

    async def drop_delayed(self, place: Place) -> int:
        """How many those were."""
        try:
            return await self.jetstream.purge(place.stream, f"{place.subject.decode()}.later.*")
        except RefusedError as error:
            raise fault(error, self._address.shown) from error

    async def _find(self, name: str) -> StreamInfo | None:
        try:
            return await self.jetstream.stream(stream_name(self._address, name))
        except RefusedError as error:
            if error.refusal.err_code == STREAM_NOT_FOUND:
                return None
            raise fault(error, self._address.shown) from error

    async def _adopt(self, info: StreamInfo, spec: QueueSpec) -> QueueSpec:
        """Write into the description of a stream that others made what it is declared as; all else stays as it is."""
        check_usable(info.config, spec.name, subject_of(self._address, spec.name))
        there = await self._consumer(info, spec.name)
        if there is not None:
            lease = _lease(there)
            check_equal(
                msgspec.structs.replace(spec, lease=spec.lease if math.isclose(lease, spec.lease) else lease), spec
            )
        text = str(info.config.get("description", ""))
        try:
            await self.jetstream.update_stream({**info.config, "description": described(text, spec)})
        except RefusedError as error:
            raise fault(error, self._address.shown) from error
        return spec

    async def _locate(self, info: StreamInfo, spec: QueueSpec | None) -> Place:
        """Make the consumers that are missing, and remember."""
        name = spec.name if spec is not None else _queue_of(info.config["name"])
        subject = subject_of(self._address, name)
        check_usable(info.config, name, subject)
        delays = f"{subject}.later.*" in info.config["subjects"]
        schedules = delays and bool(info.config.get("allow_msg_schedules"))
        try:
            consumer = await self._consumer(info, name)
            if consumer is None:
                wait = (QueueSpec(name=name) if spec is None else spec).lease * SLACK
                consumer = await self._make_consumer(info, subject, wait)
            check_consumer(consumer.config, name)
            names = await self.jetstream.consumers(info.config["name"]) if delays else []
            if delays and not schedules and LATER not in names:
                config = consumer_config(LATER, f"{subject}.later.*", 60.0)
                await self.jetstream.create_consumer(info.config["name"], config)
        except RefusedError as error:
            if error.refusal.err_code == STREAM_NOT_FOUND:
                raise QueueNotFoundError(name) from error
            raise fault(error, self._address.shown) from error
        await self._sweep(name, info, consumer)
        place = Place(
            spec=QueueSpec(name=name, lease=_lease(consumer)) if spec is None else spec,
            stream=info.config["name"],
            subject=subject.encode(),
            consumer=str(consumer.config["durable_name"]),
            wait=consumer.config["ack_wait"] / 1e9,
            delays=delays,
            schedules=schedules,
            mover=delays and (not schedules or LATER in names),
            skew=_skew(info),
        )
        self._known[name] = place
        return place

    async def _sweep(self, name: str, stream: StreamInfo, consumer: ConsumerInfo) -> None:
        """Delete what was acknowledged and is there all the same.

        A server that is killed can forget that it deleted messages and remember that they were acknowledged: it never hands
        them out again, and counts them for ever.
        """
        floor = consumer.ack_floor.stream_seq
        if not stream.state.messages or stream.state.first_seq > floor:
            return
        subject = subject_of(self._address, name)
        try:
            count = await self.jetstream.purge(stream.config["name"], subject, floor + 1)
        except RefusedError as error:
            _log.debug("queue %r: what was acknowledged cannot be deleted: %s", name, error)
            return
        if count:
            _log.info("queue %r: %d messages that were acknowledged were still there, and are deleted now", name, count)

    async def _consumer(self, info: StreamInfo, queue: str) -> ConsumerInfo | None:
        """The one that leases are of, if there is one."""
        stream, subject = info.config["name"], subject_of(self._address, queue)
        try:
            names = [CONSUMER]
            if new_consumer_name(info.config) != CONSUMER:
                names = [each for each in await self.jetstream.consumers(stream) if each != LATER]
            for each in names:
                found = await self.jetstream.consumer(stream, each)
                if found.config.get("filter_subject") in {subject, None, ""}:
                    return found
        except RefusedError as error:
            if error.refusal.err_code == STREAM_NOT_FOUND:
                raise QueueNotFoundError(queue) from error
            if error.refusal.err_code != CONSUMER_NOT_FOUND:
                raise fault(error, self._address.shown) from error
        return None

    async def _make_consumer(self, info: StreamInfo, subject: str, wait: float) -> ConsumerInfo:
        config = consumer_config(new_consumer_name(info.config), subject, wait)
        try:
            return await self.jetstream.create_consumer(info.config["name"], config)
        except RefusedError as error:
            if error.refusal.err_code not in {*CONSUMER_NOT_UNIQUE, *CONSUMER_EXISTS}:
                raise
            found = await self._consumer(info, _queue_of(info.config["name"]))  # another one was quicker
            if found is None:
                raise
            return found

    async def _version(self) -> tuple[int, ...]:
        connection = await self.jetstream.link.connection()
        return version_of(connection.info)


def version_of(info: Mapping[str, Any]) -> tuple[int, ...]:
    """The server's version, as far as it is numbers."""
    return tuple(int(part) for part in str(info.get("version", "")).split(".")[:2] if part.isdecimal())


def _lease(consumer: ConsumerInfo) -> float:
    return float(consumer.config["ack_wait"]) / 1e9 / SLACK


def _queue_of(stream: str) -> str:
    return stream.partition("-")[2].replace("=", ".")


def _skew(info: StreamInfo) -> float:
    """How far the server's clock is ahead, as far as that is more than the way to it took."""
    if info.ts is None:
        return 0.0
    try:
        there = datetime.fromisoformat(info.ts).timestamp()
    except ValueError:
        return 0.0
    skew = there - time.time()
    return skew if abs(skew) > _CLOCKS else 0.0
