"""The server's management: what it knows of messages that are held, and what is said when it cannot tell."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest
from brokers.rabbitmq_server import RabbitMQServer
from transports.rabbitmq.support import opened
from transports.words import receive, sends

from oncue.core.errors import AccessDeniedError, ConnectionLostError, InvalidValueError
from oncue.transports.rabbitmq.address import parse


def managed(url: str, management: str) -> str:
    return f"{url}?management={quote(management, '')}"


@pytest.mark.timeout(60)
async def test_it_tells_how_many_messages_are_held(server: RabbitMQServer, url: str) -> None:
    async with opened(managed(url, server.management)) as transport:
        await transport.send(*sends(3))
        async with transport.subscribe("work", prefetch=2) as subscription:
            for _ in range(2):
                await receive(subscription)
            async with asyncio.timeout(30):  # the server counts every five seconds
                while (await transport.depth("work")).leased != 2:
                    await asyncio.sleep(0.1)
            assert (await transport.depth("work")).ready == 1
        assert transport.features.depth == {"ready"}, "what is seconds old is not exact"


async def test_where_it_cannot_be_asked_a_depth_is_an_error_and_not_zero(server: RabbitMQServer, url: str) -> None:
    async with opened(managed(url, "http://127.0.0.1:1")) as transport:
        with pytest.raises(ConnectionLostError, match=r"^http://127\.0\.0\.1:1: "):
            await transport.depth("work")
    stranger = server.management.replace("//", "//guest:hush@")
    async with opened(managed(url, stranger)) as transport:
        with pytest.raises(AccessDeniedError, match="401") as caught:
            await transport.depth("work")
        assert "hush" not in str(caught.value)
    async with opened(managed(url, f"{server.management}/elsewhere")) as transport:
        with pytest.raises(ConnectionLostError, match="404"):
            await transport.depth("work")


@pytest.mark.parametrize("given", ["localhost:15672", "ftp://h", "http://", "http://h:x", "http://h/?a=b"])
def test_what_is_no_url_of_a_management_is_refused(given: str) -> None:
    with pytest.raises(InvalidValueError, match="management"):
        parse(f"amqp://localhost/?management={quote(given, '')}")
