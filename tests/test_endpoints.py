"""Metrics and health over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from oncue.core.errors import ConfigError, ConnectionLostError, InvalidValueError
from oncue.core.message import Message, Send
from oncue.endpoints import ask_depths, serve
from oncue.events import MessageDone
from oncue.health import Health
from oncue.metrics import Metrics, QueueDepth
from oncue.transports.base import Depth, QueueSpec
from oncue.transports.memory import MemoryStore, MemoryTransport


class Answer:
    def __init__(self, response: aiohttp.ClientResponse, text: str) -> None:
        self.status = response.status
        self.type = response.headers.get("Content-Type", "")
        self.headers = response.headers
        self.text = text


async def get(address: str, path: str, **headers: str) -> Answer:
    url = f"http://{'127.0.0.1' if address.startswith(':') else ''}{address}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return Answer(response, await response.text())


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def test_metrics_are_text_that_prometheus_reads() -> None:
    metrics = Metrics()
    metrics(MessageDone("q", "a", 1, 0.1, 0))
    async with serve("127.0.0.1:0", Health(), metrics) as address:
        answer = await get(address, "/metrics")
    assert (answer.status, answer.type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"oncue_messages", "python_info"} <= names


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize("accept", ["application/openmetrics-text", "text/html, Application/OpenMetrics-Text;q=0.1", PROMETHEUS])  # fmt: skip
async def test_metrics_are_open_metrics_for_who_asks_for_them(accept: str) -> None:
    metrics = Metrics()
    metrics(MessageDone("q", "a", 1, 0.1, 0))

    async def depths() -> Mapping[str, QueueDepth]:
        return {"q": QueueDepth(ready=3)}

    async with serve("127.0.0.1:0", Health(), metrics, depths) as address:
        answer = await get(address, "/metrics", Accept=accept)
    assert (answer.status, answer.type) == (200, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    found = {family.name: family for family in parse_open_metrics(answer.text)}
    assert {"oncue_messages", "oncue_queue_messages", "python_info"} <= set(found)
    assert [each.value for each in found["oncue_queue_messages"].samples] == [3.0]
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "application/openmetrics-text;q=0", "application/json"])
async def test_metrics_are_the_older_text_for_all_others(accept: str) -> None:
    async with serve("127.0.0.1:0", Health(), Metrics()) as address:
        answer = await get(address, "/metrics", Accept=accept)
    assert (answer.status, answer.type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "# EOF" not in answer.text


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_process_that_is_well_says_ok(path: str) -> None:
    health = Health()
    health.pulse("q").beat()
    async with serve("127.0.0.1:0", health, Metrics()) as address:
        answer = await get(address, path)
        assert (answer.status, answer.text, answer.type) == (200, "ok\n", "text/plain; charset=utf-8")
        answer = await get(address, path, Accept="application/json")
        assert (answer.status, answer.text) == (200, '{"status": "ok", "reasons": []}')
        assert answer.type == "application/json; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_process_that_is_not_ready_says_why() -> None:
    health = Health()
    pulses = [health.pulse("a"), health.pulse("b")]
    pulses[1].lost("connection refused")
    reasons = ["queue a: not subscribed yet", "queue b: connection refused"]
    async with serve("127.0.0.1:0", health, Metrics()) as address:
        answer = await get(address, "/readyz")
        assert (answer.status, answer.text.splitlines()) == (503, reasons)
        answer = await get(address, "/readyz", Accept="text/html, application/json;q=0.9")
        assert answer.status == 503
        assert '"status": "unavailable"' in answer.text and reasons[1] in answer.text
        assert (await get(address, "/livez")).status == 200


async def test_a_process_that_is_stuck_is_not_alive() -> None:
    clock = [0.0]
    health = Health(clock=lambda: clock[0])
    health.pulse("q").beat()
    async with serve("127.0.0.1:0", health, Metrics()) as address:
        clock[0] = 1000.0
        answer = await get(address, "/livez")
    assert (answer.status, answer.text) == (503, "queue q: no round trip to the broker for 1000 s\n")


async def test_there_is_nothing_else_and_no_version_is_told() -> None:
    async with serve("127.0.0.1:0", Health(), Metrics()) as address:
        answers = [await get(address, path) for path in ("/", "/metrics/x", "/../etc/passwd", "/livez")]
    assert [answer.status for answer in answers] == [404, 404, 404, 200]
    assert {answer.headers["Server"] for answer in answers} == {"oncue"}


# Depths.


async def test_depths_are_asked_for_at_each_scrape() -> None:
    transport = MemoryTransport(MemoryStore())
    for queue in ("q", "q-dlq"):
        await transport.declare(QueueSpec(name=queue))

    async def depths() -> Mapping[str, QueueDepth]:
        return await ask_depths(transport, ["q", "gone"])

    async with serve("127.0.0.1:0", Health(), Metrics(), depths) as address:
        assert 'oncue_queue_messages{queue="q",state="ready"} 0.0' in (await get(address, "/metrics")).text
        await transport.send(Send("q", Message(b"", "a")), Send("q", Message(b"", "b"), 60.0))
        await transport.send(*(Send("q-dlq", Message(b"", id)) for id in "cde"))
        async with transport.subscribe("q-dlq", prefetch=1) as subscription:
            await subscription.receive()
            lines = (await get(address, "/metrics")).text.splitlines()
    shown = [line.removeprefix("oncue_queue_messages") for line in lines if line.startswith("oncue_queue_messages{")]
    assert shown == [
        '{queue="q",state="ready"} 1.0',
        '{queue="q",state="leased"} 0.0',
        '{queue="q",state="delayed"} 1.0',
        '{queue="q",state="dead"} 3.0',
    ]


class Away(MemoryTransport):
    async def depth(self, queue: str) -> Depth:
        raise ConnectionLostError("away")


class Blind(MemoryTransport):
    async def depth(self, queue: str) -> Depth:
        return Depth(None, None, None)


async def test_depths_of_a_transport_that_is_away_or_cannot_tell_are_absent() -> None:
    assert await ask_depths(Away(MemoryStore()), ["q"]) == {}
    assert await ask_depths(Blind(MemoryStore()), ["q"]) == {"q": QueueDepth()}
    for transport in (Away(MemoryStore()), Blind(MemoryStore())):
        async with serve(
            "127.0.0.1:0", Health(), Metrics(), lambda transport=transport: ask_depths(transport, ["q"])
        ) as address:
            answer = await get(address, "/metrics")
            assert answer.status == 200
            assert 'state="' not in answer.text


async def test_depths_that_fail_or_take_too_long_keep_nobody_from_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("oncue.endpoints._PATIENCE", 0.05)
    caplog.set_level("CRITICAL")

    async def never() -> Mapping[str, QueueDepth]:
        await asyncio.Event().wait()
        return {}

    async def broken() -> Mapping[str, QueueDepth]:
        raise RuntimeError("secret")

    for depths in (never, broken):
        async with serve("127.0.0.1:0", Health(), Metrics(), depths) as address:
            answer = await get(address, "/metrics")
        assert answer.status == 200
        assert "python_info" in answer.text and "secret" not in answer.text


# Addresses.


async def test_without_a_host_all_addresses_are_served() -> None:
    async with serve(":0", Health(), Metrics()) as address:
        assert address.startswith(":") and address != ":0"
        assert (await get(f"127.0.0.1{address}", "/livez")).status == 200
        if has_ipv6():
            assert (await get(f"[::1]{address}", "/livez")).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_a_host_and_a_port_are_served(host: str) -> None:
    if host == "[::1]" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    async with serve(f"{host}:0", Health(), Metrics()) as address:
        assert address.startswith(f"{host}:") and not address.endswith(":0")
        assert (await get(address, "/livez")).status == 200


@pytest.mark.parametrize("form", ["{}", "127.0.0.1{}"])
async def test_an_address_in_use_is_one_clear_error(form: str) -> None:
    async with serve(form.format(":0"), Health(), Metrics()) as address:
        with pytest.raises(ConfigError) as raised:
            async with serve(address, Health(), Metrics()):
                pytest.fail("it was served twice")
    assert str(raised.value) == f"metrics and health cannot be served on {address}: another program uses this port"


async def test_a_port_can_be_had_again_at_once() -> None:
    address = ":0"
    for _ in range(3):
        async with serve(address, Health(), Metrics()) as address:
            assert (await get(address, "/livez")).status == 200


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.1:0", "this machine has no such address"),
        ("no-such-host.invalid:0", "there is no such host"),
        (f"{'a' * 70}.invalid:0", "there is no such host"),
    ],
)
async def test_an_address_that_cannot_be_had_is_one_clear_error(address: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^metrics and health cannot be served on {address}: {reason}$"):
        async with serve(address, Health(), Metrics()):
            pytest.fail("it was served")


@pytest.mark.parametrize(
    "address", ["", "9000", "host", "host:", ":65536", "::1:9000", "[x]:1", "http://h:1", "h:1/x", "h:-1"]
)
async def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidValueError, match="expected HOST:PORT"):
        async with serve(address, Health(), Metrics()):
            pytest.fail("it was served")


async def test_a_client_that_hangs_on_does_not_keep_the_process_from_ending() -> None:
    async with serve("127.0.0.1:0", Health(), Metrics()) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        before = time.monotonic()
    assert time.monotonic() - before < 5.0
    writer.close()
    await writer.wait_closed()
