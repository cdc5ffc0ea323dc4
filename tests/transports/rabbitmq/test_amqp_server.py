"""The client against a real server."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from brokers.rabbitmq_server import RabbitMQServer, free_port
from pamqp import commands
from transports.rabbitmq.amqp_support import on_each_loop, soon

from oncue.transports.rabbitmq.amqp import (
    Channel,
    ChannelClosed,
    Connection,
    ConnectionClosed,
    Delivery,
    Endpoint,
    Returned,
    connect,
    decode_properties,
    encode_properties,
)
from oncue.transports.rabbitmq.amqp import connection as connection_module

BLOCK = 3.6
"""Seconds; either side gives up the other when that was silent for two heartbeats, of one second each."""
PLAIN = encode_properties(message_id="id", delivery_mode=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of our own for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    path, key = folder / "certificate.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {path}"
    command += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    return path, key


@pytest.fixture(scope="module")
def secure_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path], secure_port: int
) -> Iterator[RabbitMQServer]:
    path, key = certificate
    secure = {
        "listeners.ssl.default": f"127.0.0.1:{secure_port}",
        "ssl_options.cacertfile": str(path),
        "ssl_options.certfile": str(path),
        "ssl_options.keyfile": str(key),
        "ssl_options.verify": "verify_none",
    }
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"), settings=secure)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def endpoint(server: RabbitMQServer) -> Endpoint:
    """A virtual host without queues."""
    vhost = urlsplit(server.vhost()).path[1:]
    return Endpoint("127.0.0.1", server.port, "guest", "guest", vhost, heartbeat=10)


@asynccontextmanager
async def opened(endpoint: Endpoint, **changed: Any) -> AsyncIterator[tuple[Connection, Channel]]:
    connection = await connect(msgspec.structs.replace(endpoint, **changed))
    try:
        yield connection, await connection.channel()
    finally:
        await connection.close(10)


async def declare(channel: Channel, queue: str = "work", **arguments: Any) -> int:
    answer = await channel.call(commands.Queue.Declare(queue=queue, durable=True, arguments=arguments))
    count: int = answer.message_count
    return count


class Confirms:
    """Which messages the server has taken, and which not."""

    def __init__(self, channel: Channel) -> None:
        self.outstanding: set[int] = set()
        self.refused: list[int] = []
        self._channel = channel
        self._done = asyncio.Event()
        channel.on_confirm = self._confirmed

    def publish(self, queue: str, body: bytes, properties: bytes = PLAIN) -> int:
        tag = self._channel.publish("", queue, properties, body)
        self.outstanding.add(tag)
        self._done.clear()
        return tag

    async def all(self) -> None:
        if self.outstanding:
            await soon(self._done.wait())

    def _confirmed(self, tag: int, multiple: bool, acknowledged: bool) -> None:
        tags = {other for other in self.outstanding if other <= tag} if multiple else {tag}
        assert tags <= self.outstanding
        self.outstanding -= tags
        if not acknowledged:
            self.refused += tags
        if not self.outstanding:
            self._done.set()


async def consuming(channel: Channel, queue: str = "work", prefetch: int = 100) -> tuple[asyncio.Queue[Delivery], str]:
    got: asyncio.Queue[Delivery] = asyncio.Queue()
    return got, await channel.consume(queue, got.put_nowait, lambda _: None, prefetch=prefetch)


# Opening


@on_each_loop
async def test_who_the_server_is_and_what_was_agreed(server: RabbitMQServer, endpoint: Endpoint) -> None:
    async with opened(endpoint, heartbeat=10, name="the name") as (connection, channel):
        assert connection.server["product"] == "RabbitMQ"
        assert connection.server["version"]
        assert connection.server["capabilities"]["consumer_cancel_notify"] is True
        assert (connection.heartbeat, connection.frame_max, connection.channel_max) == (10, 131_072, 2047)
        assert channel.number == 1
        shown = await asyncio.to_thread(server.control, "list_connections", "client_properties")
        assert '"connection_name","the name"' in shown
    async with opened(endpoint, heartbeat=1000) as (connection, _):
        assert connection.heartbeat == 60


@on_each_loop
async def test_a_wrong_password_is_refused_with_the_servers_word(endpoint: Endpoint) -> None:
    with pytest.raises(ConnectionClosed, match="ACCESS_REFUSED") as caught:
        await soon(connect(msgspec.structs.replace(endpoint, password="sesame")))
    assert caught.value.code == 403
    assert "sesame" not in str(caught.value)


@on_each_loop
async def test_a_missing_virtual_host_is_refused_with_the_servers_word(endpoint: Endpoint) -> None:
    with pytest.raises(ConnectionClosed, match="vhost nowhere not found") as caught:
        await soon(connect(msgspec.structs.replace(endpoint, vhost="nowhere")))
    assert (caught.value.code, caught.value.class_id, caught.value.method_id) == (530, 10, 40)


@on_each_loop
async def test_tls(endpoint: Endpoint, certificate: tuple[Path, Path], secure_port: int) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    async with opened(endpoint, port=secure_port, ssl=trusting) as (_, channel):
        await channel.confirm()
        await declare(channel)
        confirms = Confirms(channel)
        bodies = [os.urandom(size) for size in (0, 1, 100, 500_000)]
        for body in bodies:
            confirms.publish("work", body)
        await confirms.all()
        got, _ = await consuming(channel)
        assert [(await soon(got.get())).body for _ in bodies] == bodies
    with pytest.raises(ssl.SSLError):
        await soon(connect(msgspec.structs.replace(endpoint, port=secure_port, ssl=ssl.create_default_context())))


@on_each_loop
async def test_plain_to_a_port_that_speaks_tls_is_an_error(endpoint: Endpoint, secure_port: int) -> None:
    with pytest.raises((ConnectionClosed, TimeoutError)):
        await soon(connect(msgspec.structs.replace(endpoint, port=secure_port, timeout=3)))


# Channels


@on_each_loop
async def test_a_channel_error_has_code_text_and_what_was_refused(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (connection, first):
        with pytest.raises(ChannelClosed, match="no queue 'missing'") as caught:
            await first.call(commands.Queue.Declare(queue="missing", passive=True))
        assert (caught.value.code, caught.value.class_id, caught.value.method_id) == (404, 50, 10)
        assert (await first.closed).code == 404
        channel = await connection.channel()
        await declare(channel)
        with pytest.raises(ChannelClosed, match="inequivalent arg 'x-max-length'") as caught:
            await declare(channel, **{"x-max-length": 5})
        assert caught.value.code == 406
        channel = await connection.channel()
        channel.ack(17)
        fault = await soon(channel.closed)
        assert (fault.code, fault.class_id, fault.method_id) == (406, 60, 80)
        channel = await connection.channel()
        channel.publish("nowhere", "key", PLAIN, b"body")
        assert (await soon(channel.closed)).code == 404
        assert not connection.closed.done()


@on_each_loop
async def test_a_connection_error_has_code_text_and_what_was_refused(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (connection, channel):
        with pytest.raises(ConnectionClosed) as caught:
            await channel.call(commands.Exchange.Declare(exchange="e", exchange_type="nonsense"))
        assert (caught.value.code, caught.value.class_id, caught.value.method_id) == (503, 40, 10)
        assert (await connection.closed).code == (await channel.closed).code == 503


@on_each_loop
async def test_all_channels_that_the_server_allows(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (connection, _):
        opening = (connection.channel() for _ in range(connection.channel_max - 1))
        channels = await soon(asyncio.gather(*opening))
        assert {channel.number for channel in channels} == set(range(2, 2048))
        with pytest.raises(ChannelClosed, match="all 2047 channels"):
            await connection.channel()
        await soon(channels[1000].close())
        assert (await connection.channel()).number == channels[1000].number


@on_each_loop
async def test_calls_that_are_cancelled_at_random_confuse_no_others(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (_, channel):
        chance = random.Random(7)

        async def ask(number: int) -> None:
            answer = await channel.call(commands.Queue.Declare(queue=f"q{number}", auto_delete=True))
            assert answer.queue == f"q{number}"

        tasks = [asyncio.create_task(ask(number)) for number in range(200)]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(chance.choice([0, 0.001]))
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} == {type(None), asyncio.CancelledError}
        await ask(1000)


# Publishing


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@on_each_loop
async def test_messages_go_and_come_as_they_are(endpoint: Endpoint, kind: str) -> None:
    async with opened(endpoint) as (connection, channel):
        await channel.confirm()
        await declare(channel, **{"x-queue-type": kind})
        confirms = Confirms(channel)
        edge = connection.frame_max - 8
        sizes = (0, 1, 99, edge - 1, edge, edge + 1, 2 * edge, 2 * edge + 1, 3_000_000)
        bodies = [os.urandom(size) for size in sizes]
        fields = {
            "message_id": "m",
            "headers": {"a": "ä", "n": 1, "x": 2.5, "t": {"l": [None, True]}},
            "delivery_mode": 2,
        }
        for number, body in enumerate(bodies, 1):
            await connection.writable()
            assert confirms.publish("work", body, encode_properties(**fields)) == number
        await confirms.all()
        got, tag = await consuming(channel)
        for number, body in enumerate(bodies, 1):
            delivery = await soon(got.get())
            assert (delivery.consumer_tag, delivery.tag, delivery.redelivered) == (tag, number, False)
            assert (delivery.exchange, delivery.routing_key) == ("", "work")
            assert delivery.body == body
            properties = decode_properties(delivery.properties)
            assert {name: getattr(properties, name) for name in fields} == fields
        channel.ack(len(bodies), multiple=True)
        await channel.cancel(tag)
        await channel.close()
        assert await declare(await connection.channel(), **{"x-queue-type": kind}) == 0


@on_each_loop
async def test_thousands_are_confirmed_each_once(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (connection, channel):
        await channel.confirm()
        await declare(channel)
        confirms = Confirms(channel)
        for _ in range(5000):
            await connection.writable()
            confirms.publish("work", b"body")
        await confirms.all()
        assert confirms.refused == []
        assert await declare(channel) == 5000


@on_each_loop
async def test_what_a_queue_refuses_is_told(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (_, channel):
        await channel.confirm()
        await declare(channel, **{"x-max-length": 1, "x-overflow": "reject-publish"})
        confirms = Confirms(channel)
        confirms.publish("work", b"body")
        await confirms.all()
        confirms.publish("work", b"body")
        await confirms.all()
        assert confirms.refused == [2]


@pytest.mark.parametrize("size", [0, 10, 300_000])
@on_each_loop
async def test_what_no_queue_takes_comes_back_before_it_is_confirmed(endpoint: Endpoint, size: int) -> None:
    async with opened(endpoint) as (_, channel):
        await channel.confirm()
        await declare(channel)
        said: asyncio.Queue[Any] = asyncio.Queue()
        channel.on_return = said.put_nowait
        channel.on_confirm = lambda *confirm: said.put_nowait(confirm)
        body = os.urandom(size)
        channel.publish("", "work", PLAIN, b"body")
        channel.publish("", "nowhere", PLAIN, body)
        found = [await soon(said.get())]
        while found[-1][0] != 2 if isinstance(found[-1], tuple) else True:
            found.append(await soon(said.get()))
        [returned] = [what for what in found if isinstance(what, Returned)]
        assert returned == Returned(312, "NO_ROUTE", "", "nowhere", PLAIN, body)
        assert found.index(returned) < len(found) - 1


@on_each_loop
async def test_a_publisher_hears_that_it_is_blocked(server: RabbitMQServer, endpoint: Endpoint) -> None:
    async with opened(endpoint, heartbeat=1) as (connection, channel):
        await channel.confirm()
        await declare(channel)
        confirms = Confirms(channel)
        said: asyncio.Queue[str | None] = asyncio.Queue()
        connection.on_blocked = said.put_nowait
        await asyncio.to_thread(server.alarm, True)
        try:
            confirms.publish("work", b"body")
            assert await soon(said.get()) == connection.blocked == "low on memory"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(BLOCK):
                    while True:
                        await connection.writable()
                        confirms.publish("work", bytes(100_000))
            # Nothing that waits for the server can end now, but closing does.
            async with opened(endpoint) as (other, other_channel):
                blocked: asyncio.Queue[str | None] = asyncio.Queue()
                other.on_blocked = blocked.put_nowait
                other_channel.publish("", "work", PLAIN, b"body")
                await soon(blocked.get())
                began = time.monotonic()
                await other.close(0.5)
                assert time.monotonic() - began < 3
        finally:
            await asyncio.to_thread(server.alarm, False)
        assert await soon(said.get()) is connection.blocked is None
        await confirms.all()


# Consuming


@on_each_loop
async def test_no_more_are_handed_out_than_asked_for(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (_, channel):
        await channel.confirm()
        await declare(channel)
        confirms = Confirms(channel)
        for number in range(10):
            confirms.publish("work", b"%d" % number)
        await confirms.all()
        got, tag = await consuming(channel, prefetch=3)
        first = [await soon(got.get()) for _ in range(3)]
        assert await declare(channel) == 7
        assert got.empty()
        channel.ack(first[1].tag)
        channel.nack(first[2].tag)
        again = [await soon(got.get()) for _ in range(2)]
        assert {(delivery.body, delivery.redelivered) for delivery in again} <= {
            (b"2", True),
            (b"3", False),
            (b"4", False),
        }
        channel.nack(again[-1].tag, multiple=True, requeue=False)
        for _ in range(3):
            await soon(got.get())
        await channel.cancel(tag)
        await declare(channel)


@on_each_loop
async def test_a_consumer_whose_queue_is_deleted_hears_it(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (connection, channel):
        await declare(channel)
        ended: asyncio.Queue[str] = asyncio.Queue()
        tag = await channel.consume("work", lambda _: None, ended.put_nowait, prefetch=1)
        other = await connection.channel()
        await other.call(commands.Queue.Delete(queue="work"))
        assert await soon(ended.get()) == tag
        assert not channel.closed.done()


@on_each_loop
async def test_one_message_may_be_asked_for(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (_, channel):
        await channel.confirm()
        await declare(channel)
        assert await channel.get("work") is None
        confirms = Confirms(channel)
        confirms.publish("work", b"body")
        await confirms.all()
        found = await channel.get("work")
        assert found is not None
        assert (found.body, found.properties, found.redelivered) == (b"body", PLAIN, False)
        channel.nack(found.tag)
        found = await channel.get("work")
        assert found is not None
        assert found.redelivered
        channel.ack(found.tag)


@on_each_loop
async def test_consumers_that_come_and_are_cancelled_lose_nothing(endpoint: Endpoint) -> None:
    async with opened(endpoint) as (_, channel):
        await channel.confirm()
        await declare(channel)
        confirms = Confirms(channel)
        for number in range(300):
            confirms.publish("work", b"%d" % number)
        await confirms.all()
        got: set[bytes] = set()

        def take(delivery: Delivery) -> None:
            got.add(delivery.body)
            channel.ack(delivery.tag)

        chance = random.Random(3)
        while len(got) < 300:
            consuming = asyncio.create_task(channel.consume("work", take, lambda _: None, prefetch=5))
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.002, 0.003]))
            consuming.cancel()
            with suppress(asyncio.CancelledError):
                await channel.cancel(await consuming)
        assert await declare(channel) == 0


# The end


@on_each_loop
async def test_an_operator_closes_the_connection(server: RabbitMQServer, endpoint: Endpoint) -> None:
    async with opened(endpoint) as (connection, _):
        await asyncio.to_thread(server.control, "close_all_connections", "--global", "for a test")
        fault = await soon(connection.closed)
        assert (fault.code, fault.text) == (320, "CONNECTION_FORCED - for a test")


@on_each_loop
async def test_a_loop_that_is_held_up_keeps_its_connection(endpoint: Endpoint) -> None:
    async with opened(endpoint, heartbeat=1) as (connection, channel):
        for _ in range(2):
            channel.publish("", "nowhere", PLAIN, b"body")
            asyncio.get_running_loop().call_soon(time.sleep, BLOCK)  # in the turn that writes the message
            await asyncio.sleep(0.01)
            await soon(channel.confirm())
        assert not connection.closed.done()
    assert connection.closed.result().code == 200


@on_each_loop
async def test_without_the_watchdog_it_is_lost(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "watch", lambda _: None)
    async with opened(endpoint, heartbeat=1) as (connection, channel):
        time.sleep(BLOCK)
        with pytest.raises(ConnectionClosed):
            await soon(channel.confirm())
        assert (await connection.closed).code == 0


CHILD = """
import asyncio, os, sys
from oncue.transports.rabbitmq.amqp import Endpoint, connect, watchdog

endpoint = Endpoint("127.0.0.1", int(sys.argv[1]), "guest", "guest", heartbeat=1, name="child")

async def watching():
    connection = await connect(endpoint)
    print("open", flush=True)
    await connection.closed
    print("closed", flush=True)

async def leaving():
    global kept
    kept = await connect(endpoint)

async def forking():
    connection = await connect(endpoint)
    if not os.fork():
        os._exit(len(watchdog._watchdog._watched))
    print(os.waitstatus_to_exitcode(os.wait()[1]), len(watchdog._watchdog._watched), flush=True)
    await connection.close(5)

asyncio.run(globals()[sys.argv[2]]())
print("done", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def child(server: RabbitMQServer, part: str) -> AsyncIterator[asyncio.subprocess.Process]:
    words = ["-W", "ignore", "-c", CHILD, str(server.port), part]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        process.kill()
        await process.communicate()


async def heard(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await soon(process.stdout.readline())).decode().strip()


async def test_a_process_that_is_stopped_is_given_up_by_the_server(server: RabbitMQServer) -> None:
    async with child(server, "watching") as process:
        assert await heard(process) == "open"
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(BLOCK)
        process.send_signal(signal.SIGCONT)
        assert await heard(process) == "closed"


async def test_a_connection_whose_loop_has_ended_is_not_kept_alive(server: RabbitMQServer) -> None:
    async with child(server, "leaving") as process:
        assert await heard(process) == "done"
        async with asyncio.timeout(30):
            while "child" in await asyncio.to_thread(server.control, "list_connections", "client_properties"):
                assert process.returncode is None


async def test_a_forked_process_leaves_its_parents_connections_alone(server: RabbitMQServer) -> None:
    async with child(server, "forking") as process:
        assert await heard(process) == "0 1"


@on_each_loop
async def test_a_server_that_freezes_is_given_up(server: RabbitMQServer, endpoint: Endpoint) -> None:
    async with opened(endpoint, heartbeat=1) as (connection, _):
        server.freeze()
        try:
            assert (await soon(connection.closed)).text == "nothing was heard from the server for 2 s"
        finally:
            server.thaw()


@asynccontextmanager
async def cutting(port: int, budget: int) -> AsyncIterator[int]:
    """A port that leads to another one, until so many bytes have passed either way."""
    left = budget
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        with suppress(OSError):
            while left > 0 and (data := await reader.read(min(left, 4096))):
                left -= len(data)
                writer.write(data)
                await writer.drain()
        for each in writers:
            each.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, to_there))
        await asyncio.gather(pump(reader, to_there), pump(there, writer))

    relay = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with relay:
        yield relay.sockets[0].getsockname()[1]


@on_each_loop
async def test_a_line_that_is_cut_anywhere_ends_everything_with_a_word(endpoint: Endpoint) -> None:
    chance = random.Random(11)

    async def work(connection: Connection) -> None:
        channel = await connection.channel()
        await channel.confirm()
        await declare(channel)
        got, _ = await consuming(channel)
        confirms = Confirms(channel)
        while True:
            await connection.writable()
            confirms.publish("work", bytes(chance.choice([10, 1000, 200_000])))
            if got.qsize() > 5:
                channel.ack((await got.get()).tag)
            else:
                await asyncio.sleep(0)

    for _ in range(25):
        async with cutting(endpoint.port, int(10 ** chance.uniform(1, 6.3))) as port:
            with pytest.raises((OSError, ConnectionClosed)):
                connection = await soon(connect(msgspec.structs.replace(endpoint, port=port)))
                tasks = [asyncio.create_task(work(connection)) for _ in range(3)]
                ends = await soon(asyncio.gather(*tasks, return_exceptions=True))
                assert all(isinstance(end, ConnectionClosed) and end.code == 0 for end in ends), ends
                raise await soon(connection.closed)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_server_ends(server: RabbitMQServer, endpoint: Endpoint, end: str) -> None:
    async with opened(endpoint) as (connection, channel):
        await channel.confirm()
        await declare(channel)
        channel.publish("", "work", PLAIN, b"body")
        await asyncio.to_thread(getattr(server, end))
        try:
            fault = await soon(connection.closed)
            assert fault.code == {"stop": 320, "kill": 0}[end]
            assert (await channel.closed).code == fault.code
            with pytest.raises(ConnectionClosed):
                await channel.call(commands.Confirm.Select())
            with pytest.raises((OSError, ConnectionClosed)):
                await soon(connect(endpoint))
        finally:
            await asyncio.to_thread(server.start)
    async with opened(endpoint) as (_, channel):
        await declare(channel)
