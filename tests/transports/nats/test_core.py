"""The client of the protocol: bytes in any pieces, answers that make no sense, rights, and servers that hang up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from brokers.nats_server import NATSServer
from hypothesis import given
from hypothesis import strategies as st

from oncue.transports.nats.core import ClosedError, Connection, Endpoint, Login, SilentError, connect

INFO = b'INFO {"server_id":"x","version":"2.12.0","max_payload":1000}\r\n'
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(talk: Talk, **options: object) -> AsyncIterator[Endpoint]:
    """A server that says what it is told to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Endpoint(host="127.0.0.1", port=port, timeout=2.0, **options)  # type: ignore[arg-type]
    finally:
        server.close()


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let a client in."""
    writer.write(INFO)
    while await reader.readline() != b"PING\r\n":
        pass
    writer.write(b"PONG\r\n")
    await reader.readline()  # SUB


async def ask(connection: Connection, subject: bytes = b"where", body: bytes = b"") -> tuple[bytes, bytes]:
    future: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()

    def answer(header: bytes, body: bytes, error: Exception | None) -> None:
        if error is None:
            future.set_result((header, body))
        else:
            future.set_exception(error)

    connection.ask(subject, body, answer)
    return await future


PARTS = st.lists(
    st.tuples(st.binary(max_size=40), st.one_of(st.none(), st.binary(max_size=40)), st.booleans()), max_size=8
)


@given(PARTS, st.data())
def test_messages_are_read_from_any_pieces(parts: list[tuple[bytes, bytes | None, bool]], data: st.DataObject) -> None:
    stream = INFO
    for body, header, replied in parts:
        reply = b"reply.to " if replied else b""
        if header is None:
            stream += b"MSG a.b 7 %b%d\r\n%b\r\n" % (reply, len(body), body)
        else:
            stream += b"HMSG a.b 7 %b%d %d\r\n%b%b\r\n" % (reply, len(header), len(header) + len(body), header, body)
        stream += b"PING\r\n+OK\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)) | {0, len(stream)})

    async def main() -> list[tuple[bytes, ...]]:
        connection = Connection(Endpoint(host="h", port=1))
        found: list[tuple[bytes, ...]] = []
        connection._handlers[7] = lambda *message: found.append(message)
        for start, end in pairwise(cuts):
            connection.data_received(stream[start:end])
        assert not connection.closed.done()
        return found

    expected = [(b"a.b", b"reply.to" if replied else b"", header or b"", body) for body, header, replied in parts]
    assert asyncio.run(main()) == expected


@given(st.binary(min_size=1, max_size=200))
def test_bytes_that_are_no_protocol_end_the_connection_and_nothing_else(garbage: bytes) -> None:
    async def main() -> None:
        connection = Connection(Endpoint(host="h", port=1))
        future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        connection.ask(b"where", b"", lambda _header, _body, error: future.set_result(error))
        connection.data_received(INFO)
        connection.data_received(garbage + b"\r\n")
        if connection.closed.done():
            assert isinstance(await future, ClosedError)

    asyncio.run(main())


async def test_a_question_is_answered_and_one_that_nobody_hears_as_well(server: NATSServer) -> None:
    connection = await connect(Endpoint(host="127.0.0.1", port=server.port))
    try:
        header, body = await ask(connection, b"$JS.API.INFO")
        assert not header
        assert b"account_info_response" in body
        header, body = await ask(connection, b"nobody.is.here")
        assert header.startswith(b"NATS/1.0 503")
    finally:
        await connection.close()
    with pytest.raises(ClosedError):
        await ask(connection)


async def test_large_messages_come_whole(server: NATSServer) -> None:
    connection = await connect(Endpoint(host="127.0.0.1", port=server.port))
    try:
        came: asyncio.Queue[bytes] = asyncio.Queue()
        _, inbox = connection.subscribe(lambda _subject, _reply, _header, body: came.put_nowait(body))
        bodies = [bytes([number]) * 1_000_000 for number in range(5)]
        for body in bodies:
            connection.publish(inbox + b".1", body)
        assert [await asyncio.wait_for(came.get(), 10) for _ in bodies] == bodies
    finally:
        await connection.close()


async def test_what_comes_until_the_server_has_read_that_nobody_listens_is_heard(server: NATSServer) -> None:
    connection = await connect(Endpoint(host="127.0.0.1", port=server.port))
    try:
        heard: list[bytes] = []
        over = asyncio.Event()
        sid, inbox = connection.subscribe(lambda _subject, _reply, _header, body: heard.append(body))
        for number in range(100):
            connection.publish(inbox + b".1", b"%d" % number)
        connection.unsubscribe(sid, over.set)
        await asyncio.wait_for(over.wait(), 10)
        assert len(heard) == 100
    finally:
        await connection.close()


async def test_no_answer_in_time_is_an_error_and_costs_no_other_question() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        while line := await reader.readline():
            words = line.split()
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
            elif words and words[0] == b"PUB":
                await reader.readline()
                if words[1] == b"answered":
                    writer.write(b"MSG %b 1 2\r\nok\r\n" % words[2])

    async with peer(talk) as endpoint:
        connection = await connect(endpoint)
        silent = asyncio.ensure_future(ask(connection, b"silent"))
        for _ in range(4):
            assert await ask(connection, b"answered") == (b"", b"ok")
            await asyncio.sleep(0.6)
        with pytest.raises(SilentError):
            await silent
        assert not connection.closed.done()
        await connection.close()


async def test_a_server_that_says_nothing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await welcome(reader, writer)
        while await reader.read(65536):
            pass

    async with peer(talk) as endpoint:
        connection = await connect(endpoint)
        with pytest.raises(SilentError):
            await ask(connection)
        assert "no word within 2 s" in (await asyncio.wait_for(connection.closed, 8)).text


@pytest.mark.parametrize(
    ("said", "denied"),
    [(b"-ERR 'Authorization Violation'\r\n", True), (b"-ERR 'maximum connections exceeded'\r\n", False)],
)
async def test_a_server_that_lets_nobody_in_says_why(said: bytes, denied: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        await reader.readline()
        writer.write(said)

    async with peer(talk) as endpoint:
        with pytest.raises(ClosedError) as caught:
            await connect(endpoint)
        assert caught.value.denied == denied
        assert caught.value.text == said.decode().removeprefix("-ERR ").strip().strip("'")


async def test_a_connection_that_has_to_be_encrypted_is_not_made_without() -> None:
    import ssl

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        assert not await reader.read()  # no password goes out

    async with peer(talk, ssl=ssl.create_default_context(), login=Login(user="u", password="p")) as endpoint:
        with pytest.raises(ClosedError, match="does not encrypt"):
            await connect(endpoint)
