"""Words that the tests of this transport are written in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pamqp import commands
from transports.proxy import Proxy
from transports.words import SOON, receive

from oncue.core.errors import LeaseLostError, QueueNotFoundError
from oncue.transports.base import QueueSpec, Transport
from oncue.transports.rabbitmq import open_rabbitmq
from oncue.transports.rabbitmq.address import parse
from oncue.transports.rabbitmq.amqp import Channel, Delivery, connect, encode_properties

QUIET = 0.3
"""Seconds in which nothing comes from a queue that is empty."""


@asynccontextmanager
async def opened(url: str, *queues: str, lease: float = 60.0) -> AsyncIterator[Transport]:
    """A transport with the queues declared, `work` unless others are named."""
    async with asyncio.timeout(55):
        transport = await open_rabbitmq(url)
        try:
            for queue in queues or ("work",):
                await transport.declare(QueueSpec(name=queue, lease=lease))
            yield transport
        finally:
            await transport.close()


async def taken(transport: Transport, queue: str = "work") -> list[str]:
    """The ids of all messages that are ready, which are gone then."""
    ids: list[str] = []
    async with transport.subscribe(queue, prefetch=500) as subscription:
        while True:
            try:
                lease = await receive(subscription, within=QUIET)
            except TimeoutError:
                if not (await transport.depth(queue)).ready:
                    return ids
                continue
            try:
                await lease.ack()
                ids.append(lease.message.id)
            except LeaseLostError:
                continue


async def settled_down(transport: Transport, *queues: str) -> None:
    """Return when the queues are empty."""
    async with asyncio.timeout(45):
        for queue in queues:
            while (await transport.depth(queue)).ready:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[Channel]:
    """A channel as any other program opens one."""
    (endpoint,) = parse(url).endpoints("another program")
    connection = await connect(endpoint)
    try:
        yield await connection.channel()
    finally:
        await connection.close(SOON)


async def make_queue(url: str, name: str, *, durable: bool = True, **arguments: Any) -> None:
    """As another program makes one; the names of arguments with _ for - and without x-."""
    named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    async with raw(url) as channel:
        await channel.call(commands.Queue.Declare(queue=name, durable=durable, arguments=named))


async def publish(url: str, exchange: str, key: str, body: bytes, **properties: Any) -> None:
    """As another program does it that waits for no confirm."""
    async with raw(url) as channel:
        channel.publish(exchange, key, encode_properties(**properties), body)
        await channel.close()


async def get(url: str, queue: str) -> Delivery | None:
    """Take a message away as another program does."""
    async with raw(url) as channel:
        try:
            delivery = await channel.get(queue)
            if delivery is not None:
                channel.ack(delivery.tag)
            await channel.close()
        except Exception as error:
            raise QueueNotFoundError(queue) from error
        return delivery


class Wire(Proxy):
    """A proxy between a transport and its server."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(parse(url).hosts[0][1])

    @property
    def url(self) -> str:
        before, _, vhost = self._url.rpartition("/")
        return f"{before.rpartition(':')[0]}:{self.port}/{vhost}"
