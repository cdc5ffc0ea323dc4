"""Who is let in: TLS, service accounts, tokens, and a client that is not installed."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import unquote_plus
from uuid import uuid4

import pytest
from brokers.pubsub_server import PubSubServer
from transports.words import receive, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    InvalidValueError,
    MissingExtraError,
    ThrottledError,
)
from oncue.transports import open_transport
from oncue.transports.base import Depth, QueueSpec
from oncue.transports.pubsub import open_pubsub

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of our own for this machine, and its key."""
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
async def front(server: PubSubServer, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """The emulator behind TLS, as the service is; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2"])

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        writers.update((writer, to_server))
        await asyncio.gather(copy(reader, to_server), copy(there, writer))

    async with listening(accept, context) as port:
        writers: set[asyncio.StreamWriter] = set()
        yield port
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def listening(accept: Accept, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server of this process; nothing of it is left at the end."""
    running: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await accept(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        await asyncio.sleep(0.05)
    await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def tokens(status: str, answer: object) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Where tokens are handed out: the URL, and what was asked."""
    asked: list[bytes] = []
    body = json.dumps(answer).encode()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            asked.append(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status.encode())
            writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()

    async with listening(accept) as port:
        yield f"http://127.0.0.1:{port}/token", asked


def account(folder: Path, key: Path, tokens: str) -> Path:
    """The file of a service account."""
    path = folder / "account.json"
    content = {
        "type": "service_account",
        "project_id": "oncue-tests",
        "private_key_id": "1",
        "private_key": key.read_text("ascii"),
        "client_email": "worker@oncue-tests.iam.gserviceaccount.com",
        "token_uri": tokens,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


async def test_a_service_account_gets_a_token_and_is_let_in_by_tls(
    pubsub_server: PubSubServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    answer = {"access_token": "hunter2", "expires_in": 3600, "token_type": "Bearer"}
    async with front(pubsub_server, certificate) as port, tokens("200 OK", answer) as (uri, asked):
        file = account(tmp_path, certificate[1], uri)
        url = f"pubsub://oncue-tests?endpoint=localhost:{port}&credentials={file}&ca={certificate[0]}&timeout=5"
        transport = await open_pubsub(url)
        queue = f"safe-{uuid4().hex[:8]}"
        await transport.declare(QueueSpec(name=queue))
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            await (await receive(subscription)).ack()
        await transport.delete(queue)
        await transport.close()
    assert len(asked) == 1
    assert b"assertion=" in asked[0]


@pytest.mark.parametrize(
    ("status", "answer", "depth"),
    [
        ("200 OK", {"timeSeries": [{"points": [{"value": {"int64Value": "42"}}, {"value": {"int64Value": "7"}}]}]}, 42),
        ("200 OK", {}, None),
        ("403 Forbidden", {"error": {}}, AccessDeniedError),
        ("429 Too Many Requests", {"error": {}}, ThrottledError),
        ("500 Internal Server Error", {"error": {}}, ConnectionLostError),
    ],
)
async def test_counts_are_those_of_cloud_monitoring_where_they_are_wanted(
    pubsub_server: PubSubServer,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    status: str,
    answer: object,
    depth: int | type[Exception] | None,
) -> None:
    asked: list[str] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(unquote_plus((await reader.readuntil(b"\r\n\r\n")).decode()))
        body = json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    token = {"access_token": "hunter2", "expires_in": 3600, "token_type": "Bearer"}
    async with (
        front(pubsub_server, certificate) as port,
        tokens("200 OK", token) as (uri, _),
        listening(count) as counts,
    ):
        file = account(tmp_path, certificate[1], uri)
        url = f"pubsub://oncue-tests?endpoint=localhost:{port}&credentials={file}&ca={certificate[0]}&timeout=5"
        transport = await open_pubsub(f"{url}&depth=approximate&monitoring=http://127.0.0.1:{counts}")
        queue = f"counted-{uuid4().hex[:8]}"
        await transport.declare(QueueSpec(name=queue))
        if isinstance(depth, type):
            with pytest.raises(depth, match="Cloud Monitoring") as caught:
                await transport.depth(queue)
            assert "hunter2" not in str(caught.value)
        else:
            assert await transport.depth(queue) == Depth(depth, None, None)
        assert transport.features.depth == {"ready"}
        await transport.delete(queue)
        await transport.close()
    assert asked[0].startswith("GET /v3/projects/oncue-tests/timeSeries?filter=metric.type = ")
    assert f'resource.labels.subscription_id = "{queue}"' in asked[0]
    assert "authorization: bearer hunter2" in asked[0].lower()


async def test_a_certificate_that_is_not_trusted_is_said(
    pubsub_server: PubSubServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    async with front(pubsub_server, certificate) as port, tokens("200 OK", {}) as (uri, _):
        file = account(tmp_path, certificate[1], uri)
        url = f"pubsub://oncue-tests?endpoint=localhost:{port}&credentials={file}&timeout=3"
        with pytest.raises(ConnectionLostError, match="(?i)certificate") as caught:
            await open_pubsub(url)
        assert "\n" not in str(caught.value)
        with pytest.raises(InvalidValueError, match=r"nothing\.pem"):
            await open_pubsub(f"{url}&ca={tmp_path / 'nothing.pem'}")


async def test_an_account_that_gets_no_token_is_denied_without_being_shown(
    pubsub_server: PubSubServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    async with front(pubsub_server, certificate) as port, tokens("400 Bad Request", refusal) as (uri, _):
        file = account(tmp_path, certificate[1], uri)
        url = f"pubsub://oncue-tests?endpoint=localhost:{port}&credentials={file}&ca={certificate[0]}&timeout=5"
        with pytest.raises(AccessDeniedError, match="brought no token") as caught:
            await open_pubsub(url)
    text = str(caught.value)
    assert "\n" not in text
    assert "PRIVATE KEY" not in text


async def test_a_file_that_is_no_service_account_is_said(tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    with pytest.raises(InvalidValueError, match=r"account\.json cannot be read"):
        await open_pubsub(f"pubsub://my-project?credentials={path}")
    path.write_text('{"private_key": "hunter2"}', encoding="utf-8")
    with pytest.raises(InvalidValueError, match="is not the JSON file of a service account") as caught:
        await open_pubsub(f"pubsub://my-project?credentials={path}")
    assert "hunter2" not in str(caught.value)


async def test_a_missing_client_is_answered_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("oncue.transports.pubsub")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "google.pubsub_v1.types", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oncue\[pubsub\]'"):
        await open_transport("pubsub://my-project?emulator=127.0.0.1:9")
