"""Queues: made, found, compared and deleted. What they were declared as is kept in tags of theirs.

A queue without such tags was made by somebody else, Asya's operator for one, and is used as it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from oncue.core.errors import (
    AccessDeniedError,
    IncompatibleStoreError,
    InvalidValueError,
    QueueMismatchError,
    QueueNotFoundError,
    TransportError,
)
from oncue.transports.base import QueueSpec
from oncue.transports.checks import check_equal
from oncue.transports.polling.places import Places
from oncue.transports.sqs.address import LONGEST
from oncue.transports.sqs.calls import Calls
from oncue.transports.sqs.clock import BLIND
from oncue.transports.sqs.faults import code_of
from oncue.transports.sqs.names import FIFO, there

_log = logging.getLogger("oncue.transports.sqs")

LONGEST_RETENTION = 1_209_600
"""Seconds; the service keeps no message longer."""
_SHORTEST_RETENTION = 60
_SPARE = LONGEST + 900
"""Seconds for which a message may be held or delayed, which is no part of its age here."""
_NAME, _LEASE, _RETENTION = "oncue:name", "oncue:lease", "oncue:retention"
_OTHERS = ("oncue:", "aws:", "asya.sh/")
"""Tags that begin so are nobody's."""
_ASYA = "asya.sh/actor"
_DEAD = "-dlq"
_DELETED = frozenset({"QueueDeletedRecently"})
_EXISTS = frozenset({"QueueNameExists", "QueueAlreadyExists"})
_FORGOTTEN = 75.0
"""Seconds after which the name of a deleted queue can be used again; the service says 60."""
_PAUSE = 2.0
_AT_A_TIME = 8


class Place(NamedTuple):
    """Where a queue is."""

    name: str
    url: str
    fifo: bool


class Queues:
    """Asks over `calls`, and remembers where queues are: `place`, or `look_up` to ask anew, raise `QueueNotFoundError`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._account: dict[str, Any] = (
            {"QueueOwnerAWSAccountId": calls.address.account} if calls.address.account else {}
        )
        self._places = Places(self._find)
        self.place = self._places.get
        self.look_up = self._places.look_up
        self.forget = self._places.forget
        self._asked: dict[str, QueueSpec] = {}
        self._redriven: set[str] = set()  # queues that have a redrive policy

    async def get(self, name: str) -> tuple[Place, QueueSpec]:
        """As it was declared, by whomever; one that others made has the lease that was asked for here, or its own."""
        place = await self.look_up(name)
        tags = await self._tags(place)
        if _NAME in tags:
            return place, _spec(place, tags)
        if name in self._asked:
            return place, self._asked[name]
        attributes = await self._attributes(place, "VisibilityTimeout")
        lease = float(attributes.get("VisibilityTimeout", 0)) or QueueSpec(name=name).lease
        return place, QueueSpec(name=name, lease=min(lease, self._calls.address.longest_hold), fifo=place.fifo)

    async def declare(self, spec: QueueSpec) -> None:
        """Make it, or find that it is there with the same settings; raise `QueueMismatchError` if it has others."""
        self.forget(spec.name)
        have = await self._find(spec.name)
        if have is None:
            have = await self._make(spec)
        self._places.know(spec.name, have)
        tags = await self._tags(have)
        if _NAME in tags:
            check_equal(_spec(have, tags), spec)
        elif have.fifo != spec.fifo:
            raise QueueMismatchError(spec.name, {"fifo": (have.fifo, spec.fifo)})
        self._asked[spec.name] = spec
        await self._redrive(have, tags)

    async def delete(self, name: str) -> None:
        self.forget(name)
        self._asked.pop(name, None)
        self._unpair(name)
        place = await self._find(name)
        if place is not None:
            self._calls.deleted(place.url)
            with suppress(QueueNotFoundError):
                await self._calls.ask("delete_queue", name, QueueUrl=place.url)

    async def declared(self) -> Sequence[QueueSpec]:
        """Those that were declared, and Asya's, by name. Each queue of the account takes one request."""
        urls: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._calls.ask("list_queues", MaxResults=1000, **more)
            urls += answer.get("QueueUrls") or ()
            if not answer.get("NextToken"):
                break
            more = {"NextToken": answer["NextToken"]}
        gate = asyncio.Semaphore(_AT_A_TIME)
        found = await asyncio.gather(*(self._look(url, gate) for url in urls))
        return sorted((spec for spec in found if spec is not None), key=lambda spec: spec.name)

    async def counts(self, name: str) -> tuple[int, int]:
        """About how many messages are ready, and how many are held."""
        place = await self.place(name)
        words = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"
        try:
            found = await self._attributes(place, *words)
        except QueueNotFoundError:
            self.forget(name)
            raise
        ready, held = (int(found.get(word, 0)) for word in words)
        return ready, held

    async def attributes(self, name: str) -> Mapping[str, str]:
        """All of them; raise `QueueNotFoundError`."""
        return await self._attributes(await self.place(name), "All")

    # Inside

    async def _find(self, name: str) -> Place | None:
        own = there(name)
        for word, fifo in ((own, False), (own + FIFO, True)):
            with suppress(QueueNotFoundError):
                answer = await self._calls.ask("get_queue_url", name, QueueName=word, **self._account)
                return Place(name, answer["QueueUrl"], fifo)
        return None

    async def _make(self, spec: QueueSpec) -> Place:
        if spec.retention is not None and spec.retention > LONGEST_RETENTION:
            raise InvalidValueError(
                f"queue {spec.name!r}: SQS keeps messages for {LONGEST_RETENTION} s at most, not {spec.retention:g} s"
            )
        self._unpair(spec.name)
        tags = dict(spec.tags) | {_NAME: spec.name, _LEASE: repr(spec.lease)}
        if spec.retention is not None:
            tags[_RETENTION] = repr(spec.retention)
        word = there(spec.name) + (FIFO if spec.fifo else "")
        loop = asyncio.get_running_loop()
        until = loop.time() + _FORGOTTEN
        while True:
            try:
                answer = await self._calls.ask(
                    "create_queue", spec.name, QueueName=word, Attributes=_settings(spec), tags=tags
                )
                self._calls.made(answer["QueueUrl"])
                return Place(spec.name, answer["QueueUrl"], spec.fifo)
            except TransportError as error:
                if code_of(error) in _EXISTS:
                    found = await self._find(spec.name)
                    if found is not None:
                        return found
                if code_of(error) not in _DELETED or loop.time() > until:
                    raise
            await asyncio.sleep(_PAUSE)

    async def _redrive(self, place: Place, tags: Mapping[str, str]) -> None:
        """Have the service itself set aside what nobody could receive without dying, once there is a queue for it."""
        if not self._calls.address.redrive:
            return
        name = place.name
        dead = name.endswith(_DEAD) and len(name) > len(_DEAD)
        source = name.removesuffix(_DEAD) if dead else name
        if source in self._redriven or (not dead and _NAME not in tags):
            return
        try:
            if not dead:
                await self._set_redrive(place, await self._find(name + _DEAD))
            elif (found := await self._find(source)) and _NAME in await self._tags(found):
                await self._set_redrive(found, place)
        except (AccessDeniedError, IncompatibleStoreError, InvalidValueError) as error:
            _log.debug("queue %s: dead letters of SQS' own are not set up: %s", name, error)

    async def _set_redrive(self, source: Place, dead: Place | None) -> None:
        if dead is None or source.fifo != dead.fifo:
            return
        if "RedrivePolicy" not in await self._attributes(source, "RedrivePolicy"):
            arn = (await self._attributes(dead, "QueueArn"))["QueueArn"]
            policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(self._calls.address.redrive)})
            await self._calls.ask(
                "set_queue_attributes", source.name, QueueUrl=source.url, Attributes={"RedrivePolicy": policy}
            )
        self._redriven.add(source.name)

    def _unpair(self, name: str) -> None:
        """It is not there, and so is not what was known of it as a source or as dead letters."""
        self._redriven -= {name, name.removesuffix(_DEAD)}

    async def _tags(self, place: Place) -> Mapping[str, str]:
        """None where they may not be seen."""
        try:
            answer = await self._calls.ask("list_queue_tags", place.name, QueueUrl=place.url)
        except AccessDeniedError:
            return {}
        return answer.get("Tags") or {}

    async def _attributes(self, place: Place, *words: str) -> Mapping[str, str]:
        try:
            answer = await self._calls.ask(
                "get_queue_attributes", place.name, QueueUrl=place.url, AttributeNames=list(words)
            )
        except AccessDeniedError:
            if words == ("VisibilityTimeout",):
                return {}
            raise
        return answer.get("Attributes") or {}

    async def _look(self, url: str, gate: asyncio.Semaphore) -> QueueSpec | None:
        word = url.rpartition("/")[2]
        place = Place(word.removesuffix(FIFO), url, word.endswith(FIFO))
        async with gate:
            try:
                tags = await self._tags(place)
                if _NAME in tags:
                    return _spec(place, tags)
                if _ASYA in tags:
                    found = await self._attributes(place, "VisibilityTimeout")
                    lease = float(found.get("VisibilityTimeout", 0)) or QueueSpec(name=place.name).lease
                    return QueueSpec(name=place.name, lease=lease, fifo=place.fifo)
            except (QueueNotFoundError, IncompatibleStoreError) as error:
                _log.debug("queue %s is not listed: %s", place.name, error)
        return None


def visibility(lease: float, least: float = 0.0) -> int:
    """Seconds that the service is asked to keep a message for, so that a lease lasts."""
    return min(LONGEST, math.ceil(max(lease, least) + BLIND))


def _settings(spec: QueueSpec) -> dict[str, str]:
    kept = LONGEST_RETENTION if spec.retention is None else math.ceil(spec.retention) + _SPARE
    found = {
        "VisibilityTimeout": str(visibility(spec.lease)),
        "MessageRetentionPeriod": str(min(LONGEST_RETENTION, max(_SHORTEST_RETENTION, kept))),
        "ReceiveMessageWaitTimeSeconds": "20",
    }
    if spec.fifo:
        found["FifoQueue"] = "true"
    return found


def _spec(place: Place, tags: Mapping[str, str]) -> QueueSpec:
    kept = tags.get(_RETENTION)
    try:
        return QueueSpec(
            name=tags[_NAME],
            lease=float(tags[_LEASE]),
            fifo=place.fifo,
            retention=None if kept is None else float(kept),
            tags={name: value for name, value in tags.items() if not name.startswith(_OTHERS)},
        )
    except (KeyError, ValueError) as error:
        raise IncompatibleStoreError(f"the tags of queue {place.name!r} were written by another version") from error
