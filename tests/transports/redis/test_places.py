"""Servers that are many: nodes of a cluster, primaries and replicas, and those that are spoken to in secret."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers.redis_server import RedisServer, Sentinel, free_port
from transports.redis.support import depth, ids_in, opened
from transports.words import receive, send_surely, sends

from oncue.core.errors import ConnectionLostError
from oncue.core.message import Send
from oncue.transports.redis import open_redis


@pytest.fixture
def started() -> Iterator[Callable[[RedisServer], RedisServer]]:
    """Start servers that end with the test."""
    with ExitStack() as stack:

        def start(server: RedisServer) -> RedisServer:
            server.start()
            stack.callback(server.kill)
            return server

        yield start


async def until(holds: Callable[[], bool], within: float = 30.0) -> None:
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.02)


class Cluster:
    """Two nodes with half of the slots each."""

    def __init__(self, folder: Path, start: Callable[[RedisServer], RedisServer]) -> None:
        self.nodes = [
            start(RedisServer(folder / name, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"))
            for name in ("one", "two")
        ]
        one, two = self.nodes
        assert one.command("CLUSTER", "ADDSLOTS", *range(8192)) == b"+OK\r\n"
        assert two.command("CLUSTER", "ADDSLOTS", *range(8192, 16384)) == b"+OK\r\n"
        one.command("CLUSTER", "MEET", "127.0.0.1", two.port)

    def ready(self) -> bool:
        return all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node in self.nodes) and all(
            node.command("CLUSTER", "NODES").count(b"connected") >= 2 for node in self.nodes
        )

    def slot(self) -> int:
        return int(self.nodes[0].command("CLUSTER", "KEYSLOT", "{oncue}").strip(b":\r\n"))

    def move(self, slot: int) -> None:
        """Move the slot to the node that has it not."""
        source, target = self.nodes if slot < 8192 else reversed(self.nodes)
        ids = [node.command("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in (source, target)]
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        while keys := re.findall(rb"\{oncue\}[^\r]*", source.command("CLUSTER", "GETKEYSINSLOT", slot, 100)):
            for key in keys:
                assert source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000) == b"+OK\r\n"
        for node in (target, source):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


async def test_any_node_of_a_cluster_leads_to_the_one_that_has_the_queues(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    cluster = Cluster(tmp_path, started)
    await until(cluster.ready)
    one, two = cluster.nodes
    async with opened(one.url, "work", "next") as first, opened(two.url, "work", "next") as second:
        await first.send(*sends(10), *sends(1, "next"))
        async with second.subscribe("work", prefetch=10) as subscription:
            for _ in range(10):
                lease = await receive(subscription)
                await lease.ack(Send("next", lease.message))
        assert await depth(first, "next") == (11, 0, 0)


async def test_a_connection_follows_its_keys_to_another_node(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    cluster = Cluster(tmp_path, started)
    await until(cluster.ready)
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
    async with opened(f"redis://{hosts}/0") as transport, transport.subscribe("work", prefetch=3) as subscription:
        await transport.send(*sends(2))
        held = await receive(subscription)
        await asyncio.to_thread(cluster.move, cluster.slot())
        await send_surely(transport, *sends(1, first=7))
        assert {(await receive(subscription)).message.id for _ in range(2)} == {"1", "7"}
        await held.ack()
        assert await depth(transport) == (0, 2, 0)


async def test_the_replica_that_takes_over_is_found_by_way_of_sentinels(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    primary = started(RedisServer(tmp_path / "primary", "--repl-diskless-sync-delay", "0"))
    replica = started(RedisServer(tmp_path / "replica"))
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    sentinel = started(Sentinel(tmp_path / "sentinel", primary))
    await until(lambda: b"state=online" in primary.command("INFO", "replication"))
    await until(lambda: b"num-slaves\r\n$1\r\n1" in sentinel.command("SENTINEL", "MASTER", "main"))
    url = f"redis://127.0.0.1:1,127.0.0.1:{sentinel.port}/0?sentinel=main&replicas=1&timeout=4"
    async with opened(url) as transport, transport.subscribe("work", prefetch=2) as subscription:
        await transport.send(*sends(1))
        held = await receive(subscription)
        waiting = asyncio.ensure_future(receive(subscription, within=40))
        primary.kill()
        known = str(replica.port).encode()
        await until(lambda: known in sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"))
        async with opened(f"redis://127.0.0.1:{sentinel.port}/0?sentinel=main") as other:
            await send_surely(other, *sends(1, first=1))
        assert (await waiting).message.id == "1"
        assert await depth(transport) == (0, 2, 0)
        with pytest.raises(ConnectionLostError, match="only 0 of 1 replicas"):
            await held.ack()


async def test_a_host_that_says_nothing_does_not_stand_for_all(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    silent, server = started(RedisServer(tmp_path / "silent")), started(RedisServer(tmp_path / "server"))
    silent.freeze()
    async with opened(f"redis://127.0.0.1:1,127.0.0.1:{silent.port},127.0.0.1:{server.port}/0?timeout=3") as transport:
        await transport.send(*sends(1))
        assert b"oncue" in server.command("KEYS", "*")
    silent.thaw()
    sentinel = started(Sentinel(tmp_path / "sentinel", server))
    silent.freeze()
    async with opened(f"redis://127.0.0.1:{silent.port},127.0.0.1:{sentinel.port}/0?sentinel=main&timeout=2") as found:
        assert await ids_in(found) == ["0"]


async def test_a_primary_that_no_sentinel_knows_is_an_error(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    sentinel = started(Sentinel(tmp_path / "sentinel", started(RedisServer(tmp_path / "primary"))))
    with pytest.raises(ConnectionLostError, match="no sentinel knows 'other'"):
        await open_redis(f"redis://127.0.0.1:{sentinel.port}/0?sentinel=other")


async def test_what_too_few_replicas_have_does_not_count_as_sent(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    primary = started(RedisServer(tmp_path / "primary", "--repl-diskless-sync-delay", "0"))
    replica = started(RedisServer(tmp_path / "replica"))
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    await until(lambda: b"state=online" in primary.command("INFO", "replication"))
    async with opened(f"{primary.url}?replicas=1&timeout=4") as transport:
        await transport.send(*sends(1))
        replica.kill()
        with pytest.raises(ConnectionLostError, match="only 0 of 1 replicas"):
            await transport.send(*sends(1, first=1))
        assert await ids_in(transport) == ["0", "1"]
        async with transport.subscribe("work", prefetch=1) as subscription:
            lease = await receive(subscription)
            waiting = asyncio.ensure_future(receive(subscription))
            with pytest.raises(ConnectionLostError, match="only 0 of 1 replicas"):
                await lease.ack()
            again = await waiting
            assert (again.message.id, again.attempt) == ("1", 1), "what came with the refusal is not lost with it"


async def test_a_certificate_is_checked_and_what_is_said_is_not_readable(
    tmp_path: Path, started: Callable[[RedisServer], RedisServer]
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True
    )
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    try:
        started(RedisServer(tmp_path / "server", *options))
    except AssertionError as error:
        if "tls" not in str(error).lower():
            raise
        pytest.skip("this server was built without TLS")
    async with opened(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}") as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await (await receive(subscription)).ack()
    with pytest.raises(ConnectionLostError, match="(?i)certificate"):
        await open_redis(f"rediss://localhost:{port}/0")
    with pytest.raises(ConnectionLostError):
        await open_redis(f"redis://localhost:{port}/0?timeout=2")
