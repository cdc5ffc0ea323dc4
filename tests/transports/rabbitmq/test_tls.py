"""Connections by TLS, which end at a proxy in front of the server."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from brokers.rabbitmq_server import RabbitMQServer
from transports.rabbitmq.support import opened
from transports.words import receive, sends

from oncue.core.errors import ConnectionLostError
from oncue.transports.rabbitmq import open_rabbitmq


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of our own for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    path, key = folder / "certificate.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {path}"
    subprocess.run(
        shlex.split(f"{command} -addext subjectAltName=DNS:localhost,IP:127.0.0.1"), check=True, capture_output=True
    )
    return path, key


@asynccontextmanager
async def secured(server: RabbitMQServer, url: str, certificate: tuple[Path, Path]) -> AsyncIterator[str]:
    """The same virtual host by TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, to_server), copy(there, writer))

    proxy = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    async with proxy:
        yield url.replace("amqp://", "amqps://").replace(str(server.port), str(proxy.sockets[0].getsockname()[1]))


async def test_a_server_whose_certificate_is_trusted_is_used_by_tls(
    server: RabbitMQServer, url: str, certificate: tuple[Path, Path]
) -> None:
    async with secured(server, url, certificate) as secure:
        for options in (f"cacertfile={certificate[0]}", "verify=verify_none"):
            async with opened(f"{secure}?{options}") as transport:
                await transport.send(*sends(1))
                async with transport.subscribe("work", prefetch=1) as subscription:
                    await (await receive(subscription)).ack()


async def test_a_server_whose_certificate_is_not_trusted_is_refused(
    server: RabbitMQServer, url: str, certificate: tuple[Path, Path]
) -> None:
    async with secured(server, url, certificate) as secure:
        with pytest.raises(ConnectionLostError, match="certificate"):
            await open_rabbitmq(secure)
        with pytest.raises(ConnectionLostError):
            await open_rabbitmq(f"{secure.replace('amqps://', 'amqp://')}?timeout=2")
