"""Servers that are reached in other ways: by TLS, with keys and credentials files, and several of them as one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvloop
from brokers.nats_server import NATSServer
from brokers.redis_server import free_port
from transports.nats.support import opened, other_program, settled_down, surely, taken
from transports.words import receive, send_surely, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    MissingExtraError,
)
from oncue.transports.nats import open_nats
from oncue.transports.nats.address import parse

# TLS


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


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[NATSServer]:
    """A server that wants TLS, and a certificate of its clients too."""
    path, key = certificate
    tls = f'tls {{ cert_file: "{path}", key_file: "{key}", ca_file: "{path}", verify: true }}'
    server = NATSServer(tmp_path_factory.mktemp("secure"), tls)
    try:
        server.start()
        yield server
    finally:
        server.close()


def by_tls(server: NATSServer, certificate: tuple[Path, Path], *options: str) -> str:
    path, key = certificate
    words = [f"certfile={path}", f"keyfile={key}", *options]
    return f"{server.url.replace('nats:', 'tls:')}?{'&'.join(words)}"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("faster", [False, True])
def test_a_server_whose_certificate_is_trusted_is_used_by_tls(
    secure: NATSServer, certificate: tuple[Path, Path], *, faster: bool
) -> None:
    async def main() -> None:
        files = set()
        for option in (f"cacertfile={certificate[0]}", "verify=verify_none"):
            async with opened(by_tls(secure, certificate, option)) as transport:
                await transport.send(*sends(1))
                async with transport.subscribe("work", prefetch=1) as subscription:
                    await (await receive(subscription)).ack()
            files.add(open_files())
        assert len(files) == 1, "a socket was not closed in time"

    (uvloop.run if faster else asyncio.run)(main())


async def test_a_server_whose_certificate_is_not_trusted_is_refused(
    secure: NATSServer, certificate: tuple[Path, Path]
) -> None:
    before = open_files()
    with pytest.raises(ConnectionLostError, match="certificate"):
        await open_nats(by_tls(secure, certificate))
    with pytest.raises(ConnectionLostError):
        await open_nats(f"{secure.url}?timeout=2")
    assert open_files() == before, "the socket was not closed in time"


async def test_a_client_without_a_certificate_is_refused(secure: NATSServer, certificate: tuple[Path, Path]) -> None:
    with pytest.raises((ConnectionLostError, AccessDeniedError)):
        await open_nats(f"{secure.url.replace('nats:', 'tls:')}?cacertfile={certificate[0]}&timeout=2")


async def test_a_server_without_tls_is_no_place_for_a_url_that_wants_it(server: NATSServer) -> None:
    with pytest.raises(ConnectionLostError, match="does not encrypt"):
        await open_nats(server.url.replace("nats:", "tls:"))


async def test_encryption_may_come_before_the_first_word(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    path, key = certificate
    tls = f'tls {{ cert_file: "{path}", key_file: "{key}", handshake_first: true }}'
    server = NATSServer(tmp_path, tls)
    server.begin()
    url = f"{server.url.replace('nats:', 'tls:')}?cacertfile={path}&handshake_first=true&timeout=3"
    try:
        until = time.monotonic() + 10
        while True:
            try:
                async with opened(url) as transport:
                    await transport.send(*sends(1))
                break
            except ConnectionLostError:
                assert time.monotonic() < until
                await asyncio.sleep(0.1)
    finally:
        server.close()


# Keys


@pytest.fixture(scope="module")
def nkeys() -> ModuleType:
    found: ModuleType = pytest.importorskip("nkeys")
    return found


def new_key(nkeys: ModuleType, kind: str) -> tuple[str, str, Any]:
    """Seed, public key, and what signs with it."""
    seed = nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{kind}"))
    pair = nkeys.from_seed(seed)
    return seed.decode(), pair.public_key.decode(), pair


def token(issuer: tuple[str, str, Any], subject: str, name: str, claims: dict[str, Any]) -> str:
    """What an operator signs for an account, or an account for a user."""
    _, public, pair = issuer
    body = {"jti": name, "iat": int(time.time()), "iss": public, "name": name, "sub": subject}
    parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, body | {"nats": {**claims, "version": 2}}]
    text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    return f"{text}.{_base64(pair.sign(text.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_a_user_is_known_by_his_key(tmp_path: Path, nkeys: ModuleType) -> None:
    seed, public, _ = new_key(nkeys, "USER")
    (tmp_path / "user.nk").write_text(seed)
    (tmp_path / "other.nk").write_text(new_key(nkeys, "USER")[0])
    server = NATSServer(tmp_path, f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    server.start()
    try:
        async with opened(f"{server.url}?nkey={tmp_path}/user.nk") as transport:
            await transport.send(*sends(1))
        with pytest.raises(AccessDeniedError, match="denied"):
            await open_nats(f"{server.url}?nkey={tmp_path}/other.nk")
    finally:
        server.close()


async def test_a_credentials_file_is_enough_to_be_let_in(tmp_path: Path, nkeys: ModuleType) -> None:
    operator, account, system, user = (new_key(nkeys, kind) for kind in ("OPERATOR", "ACCOUNT", "ACCOUNT", "USER"))
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
    room = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    jwts = {
        account[1]: token(operator, account[1], "app", {"type": "account", "limits": limits | room}),
        system[1]: token(operator, system[1], "system", {"type": "account", "limits": limits}),
    }
    (tmp_path / "operator.jwt").write_text(token(operator, operator[1], "operator", {"type": "operator"}))
    jwt = token(account, user[1], "user", {"type": "user", "subs": -1, "data": -1, "payload": -1})
    credentials = tmp_path / "app.creds"
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"************************* IMPORTANT *************************\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user[0]}\n------END USER NKEY SEED------\n"
    )
    preload = "\n".join(f"{key}: {value}" for key, value in jwts.items())
    server = NATSServer(
        tmp_path,
        f'operator: "{tmp_path}/operator.jwt"',
        f"system_account: {system[1]}",
        "resolver: MEMORY",
        f"resolver_preload: {{ {preload} }}",
    )
    server.start()
    try:
        async with opened(f"{server.url}?credentials={credentials}") as transport:
            await transport.send(*sends(1))
            assert await taken(transport) == ["0"]
        with pytest.raises(AccessDeniedError, match="denied"):
            await open_nats(server.url)
    finally:
        server.close()


def test_a_credentials_file_without_its_parts_is_a_fault_of_the_url(tmp_path: Path, nkeys: ModuleType) -> None:
    (tmp_path / "bad.creds").write_text("nothing")
    (tmp_path / "bad.nk").write_text("SUAAAA")
    for option in (f"credentials={tmp_path}/bad.creds", f"nkey={tmp_path}/bad.nk"):
        with pytest.raises(InvalidValueError, match="key cannot be used"):
            parse(f"nats://h?{option}")


def test_a_key_without_what_signs_with_it_is_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user.nk").write_text("SUAAAA")
    monkeypatch.setitem(__import__("sys").modules, "nkeys", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oncue\[nats\]'"):
        parse(f"nats://h?nkey={tmp_path}/user.nk")


# Several as one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NATSServer]]:
    """Three servers, of which one may be away."""
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    servers = [
        NATSServer(
            tmp_path_factory.mktemp(f"node{number}"),
            f"cluster {{ name: oncue, listen: 127.0.0.1:{port}, routes: [{routes}] }}",
            name=f"node{number}",
        )
        for number, port in enumerate(ports)
    ]
    try:
        for server in servers:
            server.begin()
        yield servers
    finally:
        for server in servers:
            server.close()


async def test_messages_outlive_the_server_that_leads(cluster: list[NATSServer]) -> None:
    total, seen = 600, set[str]()
    url = f"nats://{','.join(f'127.0.0.1:{server.port}' for server in cluster)}?replicas=3&timeout=5"
    until = time.monotonic() + 30
    while True:  # the three have to find each other first
        try:
            async with opened(url, lease=5.0):
                break
        except (ConnectionLostError, OSError) as error:
            assert time.monotonic() < until, error
            await asyncio.sleep(0.2)
    # What the server that is killed was about to hand on comes again after the lease.
    async with opened(url, lease=5.0) as transport, transport.subscribe("work", prefetch=20) as subscription:
        async with other_program(cluster[0].url) as js:
            info = await js.stream_info("oncue-work")
            assert info.config.num_replicas == 3
            assert info.cluster is not None
            leader = next(server for server in cluster if server._name == info.cluster.leader)

        async with opened(url.replace("replicas=3", "replicas=1"), "single") as other:
            remarks = {each.name: each.text for each in await other.examine()}
            assert "replicas=3" in remarks["stream oncue-single"]
            assert "stream oncue-work" not in remarks

        async def publish() -> None:
            for number in range(total):
                await send_surely(transport, *sends(1, first=number))

        async def consume() -> None:
            while True:
                lease = await receive(subscription, 60)
                seen.add(lease.message.id)
                with suppress(LeaseLostError):
                    await surely(lease.ack)

        publishing, consuming = asyncio.create_task(publish()), asyncio.create_task(consume())
        while len(seen) < total // 3:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(leader.kill)
        await publishing
        await settled_down(transport, "work")
        consuming.cancel()
        assert len(seen) == total
        await asyncio.to_thread(leader.start)
