"""Odd clients: half frames, gigantic ones, silence, crowds. Everybody gets a defined answer and nobody blocks another."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from runtime.beside import NEWEST, OLDEST, Beside, begin, cpu, until


async def answered(reader: asyncio.StreamReader) -> Any:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    return json.loads(await reader.readexactly(length))


async def test_half_a_frame_is_answered_when_its_sender_stops(python: Path) -> None:
    async with Beside(python, "handlers.echo") as beside:
        for half in (b"\0", b"\0\0\0\x10", b"\0\0\0\x10{"):
            reader, writer = await asyncio.open_unix_connection(beside.socket)
            writer.write(half)
            writer.write_eof()
            (item,) = await answered(reader)
            assert item["error"] == "connection_error"
            assert item["details"]["message"] == f"the connection ended within a frame, after {len(half)} bytes"
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


async def test_a_gigantic_frame_is_refused_by_its_length_and_can_be_read_so(python: Path) -> None:
    async with Beside(python, "handlers.echo", ONCUE_FRAME_LIMIT="1M") as beside:
        for start in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4, struct.pack(">I", 10**6 + 1) + b"x" * 900_000):
            reader, writer = await asyncio.open_unix_connection(beside.socket)
            writer.write(start)
            (item,) = await answered(reader)
            assert item["error"] == "connection_error"
            assert "over the limit of 1000000" in item["details"]["message"]
            writer.close()
            await writer.wait_closed()
        assert (await beside.send("x" * 900_000))[0]["payload"] == "x" * 900_000


async def test_a_frame_may_come_in_single_bytes(python: Path) -> None:
    body = b'{"payload": "slowly", "route": {"actors": ["a"]}}'
    async with Beside(python, "handlers.echo") as beside:
        reader, writer = await asyncio.open_unix_connection(beside.socket)
        for byte in struct.pack(">I", len(body)) + body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await answered(reader))[0]["payload"] == "slowly"
        writer.close()
        await writer.wait_closed()


async def test_who_closes_one_direction_still_gets_an_answer(python: Path) -> None:
    body = b'{"payload": 7, "route": {"actors": ["a"]}}'
    async with Beside(python, "handlers.echo") as beside:
        reader, writer = await asyncio.open_unix_connection(beside.socket)
        writer.write(struct.pack(">I", len(body)) + body)
        writer.write_eof()
        assert (await answered(reader))[0]["payload"] == 7
        writer.close()
        await writer.wait_closed()


async def test_a_probe_that_only_connects_leaves_no_trace(python: Path) -> None:
    async with Beside(python, "handlers.echo") as beside:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(beside.socket))
        assert (await beside.send(1))[0]["payload"] == 1
        assert "refused" not in beside.text


async def test_who_hangs_up_leaves_room_for_others(python: Path) -> None:
    """The handler that nobody waits for any more is ended after a while, whatever it hangs in."""
    async with Beside(python, "handlers.act", ONCUE_RUNTIME_TIMEOUT="2s") as beside:
        call = begin(beside.send(["regex", 0]))
        await until(lambda: cpu(beside.workers()) > 5)
        call.cancel()
        assert (await beside.send(["pid", 0]))[0]["payload"] in beside.workers()


@pytest.mark.parametrize("python", [OLDEST, NEWEST], ids=["oldest", "newest"])
async def test_ten_thousand_silent_clients_block_nobody(python: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"only {hard} open files are allowed here")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        async with Beside(python, "handlers.echo") as beside:
            for _ in range(10_000):
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                clients.append(client)
                while client.connect_ex(str(beside.socket)) != 0:
                    await asyncio.sleep(0.001)
            for client in clients[::2]:
                client.send(b"\0\0")
            async with asyncio.timeout(10):
                assert (await beside.send("through"))[0]["payload"] == "through"
            for client in clients:
                client.close()
            assert (await beside.send("again"))[0]["payload"] == "again"
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_file_descriptors_the_silent_make_room() -> None:
    async with Beside(OLDEST, "handlers.echo") as beside:
        resource.prlimit(beside.pid, resource.RLIMIT_NOFILE, (40, 40))
        clients = []
        for _ in range(60):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(beside.socket))
            clients.append(client)
        async with asyncio.timeout(10):
            assert (await beside.send("through"))[0]["payload"] == "through"
            (worker,) = beside.workers()
            os.kill(worker, signal.SIGKILL)
            await beside.said("has ended (killed by SIGKILL)")
            assert (await beside.send("again"))[0]["payload"] == "again"
        for client in clients:
            client.close()


async def test_many_one_shot_clients_are_served_at_once() -> None:
    async with Beside(NEWEST, "handlers.echo") as beside:
        answers = await asyncio.gather(*(beside.send(number) for number in range(300)))
        assert [answer[0]["payload"] for answer in answers] == list(range(300))
