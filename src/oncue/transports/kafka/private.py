"""Whatever is used of aiokafka that is not public, in one place. The range of versions in `pyproject.toml` is narrow because of it,
and `tests/transports/kafka/test_private.py` fails where a version has something else there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.metadata import MetadataRequest

Client: TypeAlias = AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient
_AGAIN = 1.0
_PAUSE = 0.1
_CONNECTING = (
    "client_id",
    "request_timeout_ms",
    "security_protocol",
    "ssl_context",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
)


def quieten() -> None:
    """Keep it from reporting what is raised or repeated here, unless somebody asked for that, and from writing down passwords."""
    theirs = logging.getLogger("aiokafka")
    if theirs.level == logging.NOTSET:
        theirs.setLevel(logging.CRITICAL)
    logging.getLogger("aiokafka.conn").addFilter(_has_no_secret)


def _has_no_secret(record: logging.LogRecord) -> bool:
    return "SaslAuthenticateRequest" not in record.getMessage()


def inside(client: Client) -> AIOKafkaClient:
    """What it asks servers with; without it nobody can ask for a topic without making it."""
    found = client.client if isinstance(client, AIOKafkaProducer) else client._client  # noqa: SLF001
    assert isinstance(found, AIOKafkaClient)
    return found


def join_again(consumer: AIOKafkaConsumer) -> None:
    """Have the group's partitions shared out anew."""
    consumer._coordinator.request_rejoin()  # noqa: SLF001


def generation(consumer: AIOKafkaConsumer) -> int:
    """How often the group has shared out its partitions, up to the time this member was last there."""
    return int(consumer._coordinator.generation)  # noqa: SLF001


def is_broken(consumer: AIOKafkaConsumer) -> bool:
    """Whether it has given up being a member of its group."""
    return bool(consumer._coordinator._coordination_task.done())  # noqa: SLF001


def forget(client: Client, topic: str) -> None:
    """Ask no more for a topic that is gone, or a server may make it anew."""
    inside(client)._topics.discard(topic)  # noqa: SLF001


class _Asker:
    """A connection as the client asks by it for topics. A server makes those that are missing, unless it is told not to."""

    def __init__(self, connection: AIOKafkaConnection) -> None:
        self._connection = connection

    async def send(self, request: MetadataRequest) -> Any:
        request._allow_auto_topic_creation = False  # noqa: SLF001
        return await self._connection.send(request)


def _make_no_topics(client: AIOKafkaClient) -> None:
    get = client._get_conn  # noqa: SLF001

    async def asker(*where: Any, **options: Any) -> _Asker | None:
        connection = await get(*where, **options)
        return None if connection is None else _Asker(connection)

    client._get_conn = asker  # noqa: SLF001


async def start(client: Client, within: float) -> None:
    """Connect, to a server that says which servers there are: one that has just begun names none, and the client trips over that.

    A topic that somebody deleted is not made anew just because this client asks for it.
    """
    _make_no_topics(inside(client))
    async with asyncio.timeout(within):
        await client.start()
        while not inside(client).cluster.brokers():
            await asyncio.sleep(_PAUSE)
            await inside(client).force_metadata_update()


async def stop(client: Client, within: float) -> None:
    """Hang up. What takes longer than `within` seconds, as with a server that is frozen, is cut off."""
    connections, synchronizer = inside(client)._conns, inside(client)._sync_task  # noqa: SLF001
    stopping = asyncio.ensure_future(_stop(client))
    done, _ = await asyncio.wait([stopping], timeout=within)
    if not done:
        for connection in list(connections.values()):
            writer = connection._writer  # noqa: SLF001
            if writer is not None:
                writer.transport.abort()
            connection.close()
    await end(stopping)
    if (
        not done or stopping.cancelled() or stopping.exception() is not None
    ):  # it ends at the first part that cannot be stopped
        await _cut_off(client)
    if synchronizer is not None:
        await end(synchronizer)


async def _stop(client: Client) -> None:
    if isinstance(client, AIOKafkaAdminClient):
        await client.close()
        return
    if isinstance(
        client, AIOKafkaProducer
    ):  # its own way to stop leaves a task behind that waits for what is never sent
        client._message_accumulator._closed = True  # noqa: SLF001
        await client.flush()
    await client.stop()


async def _cut_off(client: Client) -> None:
    """Stop each part of it by itself, as whoever was stopping it in their order did not get to the end."""
    if isinstance(client, AIOKafkaConsumer):
        coordinator, fetcher = client._coordinator, client._fetcher  # noqa: SLF001
        names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
        await end(*(task for name in names if (task := getattr(coordinator, name, None)) is not None))
        if fetcher is not None:
            await _within(fetcher.close())
    elif isinstance(client, AIOKafkaProducer):
        client._closed = True  # noqa: SLF001
        if client._sender.sender_task is not None:  # noqa: SLF001
            await end(client._sender.sender_task)  # noqa: SLF001
    await _within(inside(client).close())


async def _within(closing: Coroutine[Any, Any, object]) -> None:
    task = asyncio.ensure_future(closing)
    await asyncio.wait([task], timeout=_AGAIN)
    await end(task)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these, again and again until they are over: up to Python 3.11 one that waits for an answer may miss it."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)
    for task in tasks:
        if not task.cancelled():
            task.exception()


async def connect(host: str, port: int, options: dict[str, Any]) -> None:
    """Connect and hang up. Raise what the client keeps to itself when it looks for a server it can begin with."""
    wanted = {name: value for name, value in options.items() if name in _CONNECTING}
    (await create_conn(host, port, **wanted)).close()
