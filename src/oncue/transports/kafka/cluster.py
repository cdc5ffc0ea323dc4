"""Asks the servers for one thing at a time: topics, ends of partitions, groups."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as theirs
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from oncue.core.errors import QueueNotFoundError
from oncue.transports.kafka import private
from oncue.transports.kafka.address import Address
from oncue.transports.kafka.codec import MAX_RECORD
from oncue.transports.kafka.faults import TROUBLE, fault

_LATEST, _EARLIEST = -1, -2
_PAUSE = 0.05
_COPIES = 3
_FOR_EVER = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
Answer = TypeVar("Answer")
Offsets = Mapping[int, tuple[int, str]]
"""For each partition the committed offset, and the text beside it."""


class About(NamedTuple):
    """The servers of a cluster, and what they are set to."""

    nodes: Sequence[int]
    settings: Mapping[str, str]


class Cluster:
    """One connection to each server that has to be asked. Raises errors of ours only."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._admin = AIOKafkaAdminClient(**address.client())
        self._client = private.inside(self._admin)
        self._coordinators: dict[str, int] = {}

    async def start(self) -> None:
        try:
            await private.start(self._admin, self.address.timeout)
        except TROUBLE as error:
            raise fault(await self._reason(error), self.address.shown) from error

    async def _reason(self, error: Exception) -> Exception:
        """Why none of the servers can be used: what the first one says that says something."""
        for host, port in self.address.hosts:
            try:
                await private.connect(host, port, self.address.client())
            except TROUBLE as found:
                error = found
                if isinstance(found, theirs.KafkaError | ssl.SSLError):
                    break
            else:
                error = theirs.KafkaConnectionError("it answers nothing: does it ask for a password, or for TLS?")
                break
        return error

    async def close(self) -> None:
        await private.stop(self._admin, self.address.timeout)

    async def topics(self, *names: str) -> dict[str, int]:
        """How many partitions each topic has; of all where none is named. Those that are not there are left out."""

        async def ask() -> dict[str, int]:
            request = MetadataRequest(list(names) or None, allow_auto_topic_creation=False)
            answer = await self._client.send(self._node(), request)
            found = answer.to_object()
            return {each["topic"]: len(each["partitions"]) for each in found["topics"] if not each["error_code"]}

        return await self._try(ask)

    async def create(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        """False if there is such a topic. Raise `InvalidTopicError` of the client for a name that it cannot have."""
        settings = {"max.message.bytes": str(MAX_RECORD), **(_FOR_EVER if config is None else config)}

        async def ask() -> bool:
            copies = self.address.replication or min(_COPIES, len((await self._admin.describe_cluster())["brokers"]))
            least = {"min.insync.replicas": str(copies - 1)} if copies > 1 else {}
            new = NewTopic(topic, partitions, copies, topic_configs=settings | least)
            answer = await self._admin.create_topics([new])
            error = theirs.for_code(answer.topic_errors[0][1])
            if error is theirs.NoError:
                return True
            if error is theirs.TopicAlreadyExistsError:
                return False
            raise error(f"topic {topic!r}: {answer.topic_errors[0][2]}")

        return await self._try(ask)

    async def delete(self, topic: str) -> None:
        """With all that is in it; one that is not there is no error."""

        async def ask() -> None:
            answer = await self._admin.delete_topics([topic])
            error = theirs.for_code(answer.topic_error_codes[0][1])
            if error not in {theirs.NoError, theirs.UnknownTopicOrPartitionError}:
                raise error(f"topic {topic!r}")

        await self._try(ask)

    async def ends(self, topic: str, partitions: Iterable[int], *, first: bool = False) -> dict[int, int]:
        """The offset behind the last record of each partition, or of the first one."""
        when = _EARLIEST if first else _LATEST

        async def ask() -> dict[int, int]:
            client = self._client
            answer = await client.send(self._node(), MetadataRequest([topic], allow_auto_topic_creation=False))
            (about,) = answer.to_object()["topics"]
            if about["error_code"]:
                raise theirs.for_code(about["error_code"])(topic)
            leaders = {each["partition"]: each["leader"] for each in about["partitions"]}
            asked: dict[int, list[int]] = defaultdict(list)
            for partition in partitions:
                if partition not in leaders:
                    raise theirs.UnknownTopicOrPartitionError(f"{topic}, partition {partition}")
                asked[leaders[partition]].append(partition)
            found = {}
            for node, mine in asked.items():
                request = OffsetRequest(-1, 0, [(topic, [(each, when) for each in mine])])
                for _, answers in (await client.send(node, request)).topics:
                    for partition, code, _, offset in answers:
                        if code:
                            raise theirs.for_code(code)(topic)
                        found[partition] = offset
            return found

        return await self._try(ask, missing=topic)

    async def committed(self, group: str, topic: str, partitions: Iterable[int]) -> Offsets:
        """What the group has committed; partitions of which it has nothing are left out."""
        places = [TopicPartition(topic, each) for each in partitions]

        async def ask() -> Offsets:
            node = await self._coordinator(group)
            found = await self._admin.list_consumer_group_offsets(group, node, places)
            return {
                each.partition: (value.offset, value.metadata) for each, value in found.items() if value.offset >= 0
            }

        return await self._try(ask, group=group)

    async def alive(self, group: str) -> bool:
        """Whether the group has members."""

        async def ask() -> bool:
            node = await self._coordinator(group)
            (answer,) = await self._admin.describe_consumer_groups([group], node)
            (found,) = answer.to_object()["groups"]
            if found["error_code"] and theirs.for_code(found["error_code"]) is not theirs.GroupIdNotFound:
                raise theirs.for_code(found["error_code"])(group)
            return bool(found["members"])

        return await self._try(ask, group=group)

    async def drop(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Delete the records below these offsets."""
        asked = {TopicPartition(topic, each): RecordsToDelete(offset) for each, offset in offsets.items()}
        try:
            async with asyncio.timeout(self.address.timeout):
                await self._admin.delete_records(asked)
        except TROUBLE as error:
            raise fault(error, self.address.shown) from error

    async def about(self) -> About:
        """The servers, and the settings of one of them."""

        async def ask() -> About:
            nodes = [each["node_id"] for each in (await self._admin.describe_cluster())["brokers"]]
            asked = ConfigResource(ConfigResourceType.BROKER, str(nodes[0]))
            (answer,) = await self._admin.describe_configs([asked])
            settings = {each[0]: each[1] for resource in answer.resources for each in resource[4]}
            return About(nodes, {name: value for name, value in settings.items() if value is not None})

        return await self._try(ask)

    def reader(self, **options: Any) -> AIOKafkaConsumer:
        """A consumer; whoever asks for it starts and stops it."""
        return AIOKafkaConsumer(
            **self.address.client(), enable_auto_commit=False, auto_offset_reset="earliest", **options
        )

    def _node(self) -> int:
        node = self._client.get_random_node()
        if node is None:
            raise theirs.KafkaConnectionError("no server is known")
        return int(node)

    async def _coordinator(self, group: str) -> int:
        if group not in self._coordinators:
            self._coordinators[group] = await self._admin.find_coordinator(group)
        return self._coordinators[group]

    async def _try(self, ask: Callable[[], Awaitable[Answer]], *, group: str = "", missing: str = "") -> Answer:
        """Ask until there is an answer, at most for the time that one may take."""
        last: Exception | None = None
        try:
            async with asyncio.timeout(self.address.timeout):
                while True:
                    try:
                        return await ask()
                    except theirs.UnknownTopicOrPartitionError as error:
                        if missing:
                            raise QueueNotFoundError(missing) from error
                        raise
                    except theirs.InvalidTopicError:
                        raise
                    except theirs.KafkaError as error:
                        self._coordinators.pop(group, None)
                        if not error.retriable:
                            raise
                        last = error
                    await asyncio.sleep(_PAUSE)
        except theirs.InvalidTopicError:
            raise
        except TROUBLE as error:
            known = last if isinstance(error, TimeoutError) else None
            raise fault(known or error, self.address.shown) from error
