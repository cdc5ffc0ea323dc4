"""What SQS does in its own way: batches, hops, FIFO queues, other programs' messages and queues, its dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from brokers.sqs_server import MotoServer
from transports.words import receive, sends

from oncue.core.errors import AccessDeniedError, ConnectionLostError, LeaseLostError, QueueMismatchError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.sqs import SQSTransport, open_sqs


@asynccontextmanager
async def opened(url: str, name: str = "", **spec: object) -> AsyncIterator[tuple[SQSTransport, str]]:
    """A transport, and a new queue."""
    name = name or f"work-{uuid4().hex[:8]}"
    transport = await open_sqs(url)
    try:
        await transport.declare(QueueSpec(name=name, **spec))
        yield transport, name
        await transport.delete(name)
    finally:
        await transport.close()


async def test_a_message_costs_a_third_of_a_call(url: str) -> None:
    total = 1000
    async with opened(url) as (transport, queue):
        before = transport.desk.calls.count.total()
        await transport.send(*sends(total, queue))
        done = 0

        async def work() -> None:
            nonlocal done
            while done < total:
                lease = await subscription.receive()
                done += 1
                await lease.ack()

        async with transport.subscribe(queue, prefetch=100) as subscription:
            tasks = [asyncio.create_task(work()) for _ in range(100)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while len(subscription._leases):
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        asked = transport.desk.calls.count.total() - before
    assert asked <= 0.35 * total, f"{asked} calls for {total} messages: {transport.desk.calls.count}"


async def test_a_long_delay_is_made_of_hops(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.transports.sqs.desk.LONGEST_DELAY", 1.0)
    async with opened(url) as (transport, queue), transport.subscribe(queue, prefetch=1) as subscription:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await transport.send(Send(queue, Message(b"", "later"), 3.5))
        lease = await receive(subscription)
        assert 3.49 <= loop.time() - began < 6.5
        assert lease.attempt == 1
        await lease.nack(delay=2.5)
        began = loop.time()
        lease = await receive(subscription)
        assert 2.49 <= loop.time() - began < 5.5
        assert lease.attempt == 2
        await lease.ack()


async def test_a_redrive_into_a_fifo_queue_is_no_repetition(url: str) -> None:
    async with opened(url, fifo=True) as (transport, queue):
        dead = f"{queue}-dlq"
        await transport.declare(QueueSpec(name=dead))
        message = Message(b"", "once", key="k")
        await transport.send(Send(queue, message))
        await transport.send(Send(queue, message))  # this one is
        async with transport.subscribe(queue, prefetch=5) as subscription:
            await (await receive(subscription)).ack(Send(dead, message))
            async with transport.subscribe(dead, prefetch=1) as letters:
                await (await receive(letters)).ack(Send(queue, message))
            lease = await receive(subscription)
            assert lease.message == message
            await lease.ack(Send(queue, message))
            await (await receive(subscription)).ack()
            with pytest.raises(TimeoutError):
                await receive(subscription, within=1.5)
        await transport.delete(dead)


async def test_messages_of_other_programs_are_read_and_given_back_whole(url: str) -> None:
    async with opened(url) as (transport, queue):
        place = await transport.desk.queues.place(queue)
        colour = {"DataType": "String", "StringValue": "red"}
        sent = await transport.desk.calls.ask(
            "send_message", QueueUrl=place.url, MessageBody='{"id": "1"}', MessageAttributes={"colour": colour}
        )
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            assert lease.message == Message(b'{"id": "1"}', sent["MessageId"], {"colour": "red"})
            await lease.nack()
            again = await receive(subscription)
            assert again.message == lease.message
            assert again.received.text.others["colour"]["StringValue"] == "red"
            assert again.attempt == 2
            await again.ack()


async def test_a_queue_of_asya_is_used_as_it_is(url: str) -> None:
    transport = await open_sqs(url)
    name = f"asya-{uuid4().hex[:8]}"
    try:
        await transport.desk.calls.ask(
            "create_queue", QueueName=name, Attributes={"VisibilityTimeout": "300"}, tags={"asya.sh/actor": "x"}
        )
        assert (await transport.desk.queues.get(name))[1].lease == 300
        assert name in [spec.name for spec in await transport.queues()]
        await transport.declare(QueueSpec(name=name, lease=30.0, tags={"a": "b"}))
        with pytest.raises(QueueMismatchError, match="fifo"):
            await transport.declare(QueueSpec(name=name, fifo=True))
        await transport.send(*sends(1, name))
        async with transport.subscribe(name, prefetch=1) as subscription:
            await (await receive(subscription)).ack()
    finally:
        await transport.delete(name)
        await transport.close()


async def test_sqs_itself_sets_aside_what_is_received_too_often(url: str) -> None:
    async with opened(f"{url}&redrive=2", lease=1.0) as (transport, queue):
        dead = f"{queue}-dlq"
        await transport.declare(QueueSpec(name=dead))
        policy = json.loads((await transport.desk.queues.attributes(queue))["RedrivePolicy"])
        assert int(policy["maxReceiveCount"]) == 2
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for attempt in (1, 2):
                assert (await receive(subscription)).attempt == attempt
            waiting = asyncio.ensure_future(receive(subscription))
            async with transport.subscribe(dead, prefetch=1) as letters:
                lease = await receive(letters)
                assert lease.message.id == "0"
                await lease.ack()
            waiting.cancel()
            await asyncio.wait([waiting])
        await transport.delete(dead)


async def test_a_message_cannot_be_held_beyond_the_cap(url: str) -> None:
    async with opened(f"{url}&hold=4", lease=2.0) as (transport, queue):
        assert transport.features.lease_cap == 3.6
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            began = asyncio.get_running_loop().time()
            with pytest.raises(LeaseLostError):
                while True:
                    await lease.extend(2.0)
                    await asyncio.sleep(0.2)
            assert 3.0 < asyncio.get_running_loop().time() - began < 8.0


async def test_wrong_credentials_are_denied_without_being_shown(moto_server: MotoServer) -> None:
    server = MotoServer(moto_server.folder / "strict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "0")
        server.start()
    try:
        with pytest.raises(AccessDeniedError) as caught:
            await open_sqs(server.url.replace("secret", "hunter2"))
        assert "hunter2" not in str(caught.value)
    finally:
        server.close()


async def test_nobody_there_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLostError):
        await open_sqs("sqs://key:secret@eu-west-1?endpoint=http://127.0.0.1:9&timeout=2")


async def test_no_credentials_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AccessDeniedError, match="no credentials"):
        await open_sqs("sqs://eu-west-1?endpoint=http://127.0.0.1:9&timeout=2")


async def test_a_role_is_taken_on(moto_server: MotoServer) -> None:
    url = f"{moto_server.url}&role=arn:aws:iam::123456789012:role/worker&sts={moto_server.endpoint}"
    async with opened(url) as (transport, queue):
        await transport.send(*sends(1, queue))
        assert len(await transport.peek(queue, limit=1)) == 1
