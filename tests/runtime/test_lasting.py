"""The lasting connection: many requests in flight, items as they are yielded, ping, cancel, hanging up, what is sent."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from runtime.beside import NEWEST, OLDEST, Beside, begin, in_hand, until

from oncue.core.envelope import Envelope, Route
from oncue.core.message import Message
from oncue.outgoing import Outgoing
from oncue.workloads.socket import Item, Reply

BODY = b'{"id":"m-1","route":{"actors":["a","b"],"current":0},"payload":%s}'


def value(reply: Reply) -> Any:
    assert reply.failure is None, reply.failure
    return [msgspec.json.decode(item.payload) for item in reply.items]


def code(reply: Reply) -> str:
    assert reply.failure is not None, reply
    return reply.failure.code


async def test_it_introduces_itself(python: Path) -> None:
    settings = {"ONCUE_PROCESSES": "2", "ONCUE_CONCURRENCY": "3"}
    async with Beside(python, "handlers.echo", **settings) as beside, await beside.connect() as client:
        hello = client.hello
        assert (hello.oncue, hello.handler, hello.mode) == (1, "handlers.echo", "payload")
        assert (hello.concurrency, hello.processes) == (6, 2)
        assert hello.python.split(".")[:2] == python.resolve().name.removeprefix("python").split(".")


async def test_a_thousand_requests_are_each_answered_with_their_own_result(python: Path) -> None:
    async with Beside(python, "handlers.echo", ONCUE_PROCESSES="2") as beside, await beside.connect() as client:
        replies = await asyncio.gather(*(client.call(b"%d" % number) for number in range(1000)))
        assert [value(reply) for reply in replies] == [[number] for number in range(1000)]
        replies = await asyncio.gather(*(client.call(BODY % (b"%d" % n), envelope=True) for n in range(100)))
        assert [value(reply) for reply in replies] == [[number] for number in range(100)]


async def test_results_of_every_kind_come_as_items(python: Path) -> None:
    async with Beside(python, "handlers.fan") as beside, await beside.connect() as client:
        assert value(await client.call(b"0")) == []
        assert value(await client.call(b"1")) == [0]
        assert value(await client.call(b"5")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("handler", ["count", "count_in_loop"])
async def test_items_come_as_they_are_yielded(python: Path, handler: str) -> None:
    async with Beside(python, f"handlers.{handler}") as beside, await beside.connect() as client:
        assert value(await client.call(b"3")) == [0, 1, 2]
        seen: list[Item] = []
        assert await client.call(b"1000", on_item=seen.append) == Reply()
        assert [int(bytes(item.payload)) for item in seen] == list(range(1000))


async def test_what_was_yielded_before_a_failure_has_come(python: Path) -> None:
    async with Beside(python, "handlers.count_then_fail") as beside, await beside.connect() as client:
        seen: list[Item] = []
        assert code(await client.call(b"2", on_item=seen.append)) == "processing_error"
        assert len(seen) == 2


async def test_in_envelope_mode_the_rest_of_the_envelope_comes_beside_the_payload(python: Path) -> None:
    settings = {"ONCUE_HANDLER_MODE": "envelope"}
    async with Beside(python, "handlers.advance", **settings) as beside, await beside.connect() as client:
        (item,) = (await client.call(BODY % b'{"x": [1]}', envelope=True)).items
        assert bytes(item.payload) == b'{"x":[1]}'
        assert json.loads(item.fields) == {"id": "m-1", "route": {"actors": ["a", "b"], "current": 1}}
        fields = b'{"message":{"id":"m-2","route":{"actors":["a"],"current":0}}}'
        (item,) = (await client.call(b"7", fields=fields)).items
        assert json.loads(item.fields) == {"id": "m-2", "route": {"actors": ["a"], "current": 1}}
        assert code(await client.call(b"7")) == "msg_parsing_error"


async def test_both_protocols_are_spoken_at_the_same_time(python: Path) -> None:
    async with Beside(python, "handlers.echo") as beside, await beside.connect() as client:
        first, second = await asyncio.gather(client.call(b"1"), beside.send(2))
        assert value(first) == [1]
        assert second[0]["payload"] == 2


async def test_async_handlers_run_at_the_same_time(python: Path) -> None:
    settings = {"ONCUE_CONCURRENCY": "8"}
    async with Beside(python, "handlers.meet_in_loop", **settings) as beside, await beside.connect() as client:
        assert all(value(reply)[0] >= 8 for reply in await asyncio.gather(*(client.call(b"8") for _ in range(8))))


@pytest.mark.parametrize(("processes", "threads"), [("4", "1"), ("1", "4"), ("2", "2")])
async def test_plain_handlers_run_at_the_same_time(python: Path, processes: str, threads: str, tmp_path: Path) -> None:
    settings = {"ONCUE_PROCESSES": processes, "ONCUE_CONCURRENCY": threads}
    body = json.dumps([str(tmp_path), 4]).encode()
    async with Beside(python, "handlers.meet", **settings) as beside, await beside.connect() as client:
        assert [value(reply) for reply in await asyncio.gather(*(client.call(body) for _ in range(4)))] == [[4]] * 4


async def test_ping_is_answered_while_a_handler_hangs(python: Path) -> None:
    async with Beside(python, "handlers.act") as beside, await beside.connect() as client:
        call = begin(client.call(b'["sleep", 0.5]'))
        await in_hand(client, 1)
        assert not call.done()
        await call


async def test_an_async_handler_is_cancelled(python: Path, tmp_path: Path) -> None:
    body = json.dumps(["tell", str(tmp_path / "told")]).encode()
    async with Beside(python, "handlers.act_in_loop") as beside, await beside.connect() as client:
        call = begin(client.call(body))
        await until((tmp_path / "told.begun").exists)
        call.cancel()
        await until((tmp_path / "told").exists)
        assert value(await client.call(b'["sleep", 0]')) == [0]


async def test_a_request_that_waits_is_cancelled_before_it_begins(python: Path) -> None:
    async with Beside(python, "handlers.pids") as beside, await beside.connect() as client:
        first = begin(client.call(b"0.3"))
        await in_hand(client, 1)
        waiting = begin(client.call(b"0"))
        await in_hand(client, 2)
        waiting.cancel()
        await in_hand(client, 1)
        assert not first.done()
        await first


async def test_a_coroutine_over_its_time_is_cancelled_and_its_neighbours_go_on(python: Path) -> None:
    settings = {"ONCUE_CONCURRENCY": "4"}
    async with Beside(python, "handlers.act_in_loop", **settings) as beside, await beside.connect() as client:
        other = begin(client.call(b'["sleep", 0.6]'))
        late = await client.call(b'["sleep", 60]', handler_timeout=0.2)
        assert code(late) == "timeout_error"
        assert late.failure is not None
        assert "in act_in_loop" in late.failure.traceback
        assert value(await other) == [0.6]
        assert len(beside.workers()) == 1
        assert "is ended" not in beside.text


@pytest.mark.parametrize("body", [b'["block", 60]', b'["stubborn", 60]'])
async def test_a_loop_that_does_not_let_itself_be_cancelled_is_ended(python: Path, body: bytes) -> None:
    settings = {"ONCUE_CONCURRENCY": "4"}
    async with Beside(python, "handlers.act_in_loop", **settings) as beside, await beside.connect() as client:
        other = begin(client.call(b'["sleep", 60]'))
        await in_hand(client, 1)
        assert code(await client.call(body, handler_timeout=0.2)) == "timeout_error"
        bystander = await other
        assert (code(bystander), bystander.bystander) == ("crash_error", True)
        assert value(await client.call(b'["sleep", 0]')) == [0]


async def test_odd_exceptions_in_a_coroutine_are_failures_like_others(python: Path) -> None:
    async with Beside(python, "handlers.act_in_loop") as beside, await beside.connect() as client:
        for body, name in ((b'["raise", 3]', "SystemExit"), (b'["cancelled", 0]', "CancelledError")):
            reply = await client.call(body)
            assert reply.failure is not None
            assert (reply.failure.code, reply.failure.type) == ("processing_error", name)


async def test_hanging_up_cancels_what_was_asked_for(python: Path, tmp_path: Path) -> None:
    body = json.dumps(["tell", str(tmp_path / "told")]).encode()
    async with Beside(python, "handlers.act_in_loop") as beside:
        client = await beside.connect()
        call = begin(client.call(body))
        await until((tmp_path / "told.begun").exists)
        await client.close()
        with pytest.raises(ConnectionResetError):
            await call
        await until((tmp_path / "told").exists)
        with pytest.raises(ConnectionResetError):
            await client.call(b"1")


async def test_hanging_up_ends_a_plain_handler_when_that_was_asked_for(python: Path) -> None:
    async with Beside(python, "handlers.act") as beside:
        client = await beside.connect(kill=True)
        call = begin(client.call(b'["sleep", 60]'))
        await in_hand(client, 1)
        await client.close()
        await asyncio.gather(call, return_exceptions=True)
        await beside.said("abandoned by its client")
        assert (await beside.send(["pid", 0]))[0]["payload"] in beside.workers()


async def test_a_request_over_the_limit_is_refused_before_it_is_sent() -> None:
    async with Beside(OLDEST, "handlers.echo", ONCUE_FRAME_LIMIT="1M") as beside, await beside.connect() as client:
        with pytest.raises(ValueError, match="over the runtime's limit of 1000000"):
            await client.call(b"1" * 1_000_001)


async def test_frames_that_cannot_be_are_answered_and_hung_up_on(python: Path) -> None:
    async with Beside(python, "handlers.echo", ONCUE_FRAME_LIMIT="1M") as beside:
        for frame, text in (
            (struct.pack(">IBIII", 13, 99, 1, 0, 0), "frames of kind 99 are not for a runtime"),
            (struct.pack(">IBIII", 13, 1, 1, 0, 7), "a frame of 13 bytes cannot have a head of 7"),
            (struct.pack(">IBIII", 2**31, 1, 1, 0, 7), "a frame of 2147483648 bytes is over the limit of 1000000"),
        ):
            reader, writer = await asyncio.open_unix_connection(beside.socket)
            hello = b'{"oncue":1}'
            writer.write(struct.pack(">I", len(hello)) + hello + frame)
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            assert json.loads(await reader.readexactly(length))["oncue"] == 1
            _, kind, id, _, head = struct.unpack(">IBIII", await reader.readexactly(17))
            assert (kind, id) == (19, 0)
            assert json.loads(await reader.readexactly(head))["details"]["message"] == text
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


# The context

FIELDS = json.dumps({
    "actor": "a", "attempt": 3, "last_attempt": True,
    "message": {
        "id": "m-1", "parent_id": "m-0", "headers": {"x": "y"}, "deadline": "2026-11-24T09:14:54.120000123Z",
        "route": {"actors": ["a", "b"], "current": 0},
    },
}).encode()  # fmt: skip


async def test_a_handler_can_ask_for_its_context(python: Path) -> None:
    async with Beside(python, "handlers.told") as beside, await beside.connect() as client:
        told = value(await client.call(b"1", fields=FIELDS))[0]
        assert told == {
            "id": "m-1", "parent_id": "m-0", "actor": "a", "attempt": 3, "last_attempt": True, "headers": {"x": "y"},
            "deadline": "2026-11-24T09:14:54.120000+00:00",
        }  # fmt: skip
        (item,) = await beside.send(1)
        assert (item["payload"]["id"], item["payload"]["attempt"], item["payload"]["deadline"]) == ("m-1", 1, None)


@pytest.mark.parametrize("handler", ["annotated", "by_name"])
async def test_a_context_is_found_by_its_annotation_or_name(python: Path, handler: str) -> None:
    async with Beside(python, f"handlers.{handler}") as beside:
        assert (await beside.send(1))[0]["payload"] == "m-1"


async def test_what_a_handler_sends_comes_with_its_result_under_the_librarys_ids(python: Path) -> None:
    async with Beside(python, "handlers.control") as beside, await beside.connect() as client:
        reply = await client.call(b'"Ada"', fields=FIELDS)
        assert [(sent.actor, bytes(sent.payload)) for sent in reply.sends] == [("mail", b'{"to":"Ada"}'), ("log", b"1")]
        assert value(reply) == [sent.id for sent in reply.sends]
        envelope = Envelope("m-1", Route(("a", "b")))
        options: dict[str, Any] = {"delay": 0.0, "id": None, "key": None, "route": (), "headers": None}
        same: Message = Outgoing("").compose_within(envelope, 1, "log", 1, **options).message
        assert reply.sends[1].id == same.id
        retry = await client.call(b'"retry"', fields=FIELDS)
        assert retry.failure is not None
        assert (retry.failure.type, retry.failure.retry_after) == ("RetryRequestedError", 4)
        dead = await client.call(b'"dead"', fields=FIELDS)
        assert dead.failure is not None
        assert (dead.failure.type, dead.failure.final) == ("GiveUpError", True)


async def test_what_a_handler_sends_reaches_a_strangers_sidecar_as_items(python: Path) -> None:
    async with Beside(python, "handlers.sends_only") as beside:
        assert await beside.send("Ada") == [
            {"payload": "Ada", "route": {"actors": ["a", "b"], "current": 2}},
            {"payload": "Ada", "route": {"actors": ["mail"], "current": 0}},
        ]


async def test_ten_megabytes_go_both_ways(python: Path) -> None:
    async with Beside(python, "handlers.echo") as beside, await beside.connect() as client:
        body = b'"' + b"x" * 10_000_000 + b'"'
        for reply in await asyncio.gather(*(client.call(body) for _ in range(3))):
            assert reply.items[0].payload == msgspec.Raw(body)
        assert (await beside.send("x" * 10_000_000))[0]["payload"] == "x" * 10_000_000


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    """What is yielded for it stays in its process, and the parent's memory is bounded."""
    async with Beside(NEWEST, "handlers.count_large") as beside:
        reader, writer = await asyncio.open_unix_connection(beside.socket, limit=1000)
        hello = b'{"oncue":1}'
        body = b"200"
        writer.write(struct.pack(">I", len(hello)) + hello + struct.pack(">IBIII", 13 + len(body), 1, 1, 0, 0) + body)
        await asyncio.sleep(1.0)
        assert resident(beside.pid) < 80 * 2**20
        total = 0
        while total < 200 * 10**6:
            total += len(await reader.read(2**20))
        writer.close()
        await writer.wait_closed()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
