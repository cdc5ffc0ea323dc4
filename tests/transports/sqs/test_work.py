"""What SQS does in its own way: batches, hops, FIFO queues, other programs' messages, its dead letters."""

from __future__ import annotations

import asyncio
import json

import pytest
from brokers.sqs_server import MotoServer, SQSServer
from transports.sqs.front import Front
from transports.sqs.support import opened, taken
from transports.words import receive, sends

from oncue.core.errors import InvalidValueError, LeaseLostError, MessageTooLargeError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec


@pytest.mark.parametrize(("refusals", "most"), [(0, 0.35), (1, 0.8)])
async def test_a_message_costs_a_third_of_a_call_and_a_retry_as_much(url: str, refusals: int, most: float) -> None:
    total = 500
    async with opened(url) as (transport, queue):
        before = transport.desk.calls.count.total()
        await transport.send(*sends(total, queue))
        done = 0

        async def work() -> None:
            nonlocal done
            while done < total:
                lease = await subscription.receive()
                if lease.attempt <= refusals:
                    await lease.nack()
                else:
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
    assert asked <= most * total, f"{asked} calls for {total} messages: {transport.desk.calls.count}"


async def test_a_long_delay_is_made_of_hops(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.transports.sqs.desk.LONGEST_DELAY", 1.0)
    async with opened(url) as (transport, queue), transport.subscribe(queue, prefetch=1) as subscription:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await transport.send(Send(queue, Message(b"", "later"), 2.5))
        lease = await receive(subscription)
        assert 2.49 <= loop.time() - began < 5.5
        assert lease.attempt == 1
        await lease.nack(delay=1.5)
        began = loop.time()
        lease = await receive(subscription)
        assert 1.49 <= loop.time() - began < 4.5
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


async def test_a_message_that_was_refused_often_is_not_set_aside_by_sqs(url: str) -> None:
    """What is refused or given back is sent anew, and starts from nothing in the count of the service."""
    async with opened(f"{url}&redrive=3") as (transport, queue):
        dead = f"{queue}-dlq"
        await transport.declare(QueueSpec(name=dead))
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for attempt in range(1, 8):
                lease = await receive(subscription)
                assert lease.attempt == attempt
                await lease.nack()
            for _ in range(6):
                lease = await receive(subscription)
                assert lease.attempt == 8
                await lease.release()
            await (await receive(subscription)).ack()
        assert await transport.peek(dead, limit=1) == []
        await transport.delete(dead)


async def test_dead_letters_of_sqs_and_ours_lie_in_one_queue(url: str) -> None:
    async with opened(f"{url}&redrive=1", lease=1.0) as (transport, queue):
        dead = f"{queue}-dlq"
        await transport.declare(QueueSpec(name=dead))
        await transport.send(*sends(2, queue))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            leases = {lease.message.id: lease for lease in [await receive(subscription) for _ in range(2)]}
            await leases["0"].ack(Send(dead, Message(b"body", "0", {"oncue-dead-reason": "on purpose"})))
            waiting = asyncio.ensure_future(receive(subscription))
            async with transport.subscribe(dead, prefetch=2) as letters:
                found = {lease.message.id: lease for lease in [await receive(letters) for _ in range(2)]}
                assert found["0"].message.headers == {"oncue-dead-reason": "on purpose"}
                assert found["1"].message == Message(b"body", "1")
                for lease in found.values():
                    await lease.ack()
            waiting.cancel()
            await asyncio.wait([waiting])
        await transport.delete(dead)


async def test_a_message_in_a_fifo_queue_that_is_refused_keeps_its_place(url: str) -> None:
    async with opened(url, fifo=True) as (transport, queue):
        await transport.send(*(Send(queue, Message(b"", str(number), key="k")) for number in range(3)))
        async with transport.subscribe(queue, prefetch=3) as subscription:
            first = await receive(subscription)
            assert (first.message.id, first.attempt) == ("0", 1)
            await first.nack()
            order = []
            while len(order) < 3:
                lease = await receive(subscription)
                order.append((lease.message.id, lease.attempt))
                await lease.ack()
        assert [id for id, _ in order] == ["0", "1", "2"]
        assert order[0] == ("0", 2)


async def test_a_delayed_message_in_a_fifo_queue_holds_up_those_of_its_group(url: str) -> None:
    async with opened(url, fifo=True) as (transport, queue):
        texts = [("1", "k", 2.0), ("2", "k", 0.0), ("3", "other", 0.0)]
        sent = asyncio.get_running_loop().time()
        await transport.send(*(Send(queue, Message(b"", id, key=key), delay) for id, key, delay in texts))
        async with transport.subscribe(queue, prefetch=3) as subscription:
            order = []
            for _ in texts:
                lease = await receive(subscription)
                order.append(lease.message.id)
                if lease.message.id == "1":
                    assert asyncio.get_running_loop().time() - sent >= 1.99
                    assert lease.attempt <= 2, "the first time it was not due, and the second perhaps"
                await lease.ack()
        assert order == ["3", "1", "2"]


async def test_a_fifo_queue_delays_and_holds_for_twelve_hours_at_most(url: str) -> None:
    async with opened(url, fifo=True) as (transport, queue):
        with pytest.raises(InvalidValueError, match="FIFO"):
            await transport.send(Send(queue, Message(b"", "late"), 43_201.0))
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            with pytest.raises(InvalidValueError):
                await lease.nack(delay=43_201.0)
            with pytest.raises(InvalidValueError):
                await lease.extend(43_201.0)
            await lease.ack()


async def test_messages_of_a_mebibyte_pass_where_the_service_takes_them(moto_server: MotoServer) -> None:
    """ElasticMQ takes a quarter of it."""
    async with opened(f"{moto_server.url}&depth=approximate") as (transport, queue):
        largest = 2**20 - 2**14
        await transport.send(*(Send(queue, Message(b"x" * largest, str(number))) for number in range(3)))
        with pytest.raises(MessageTooLargeError):
            await transport.send(Send(queue, Message(b"x" * 2**20, "more")))
        assert set(await taken(transport, queue)) == {"0", "1", "2"}


async def test_one_who_waits_for_nothing_asks_less_and_less(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url()) as (transport, queue):
        front.refuse = lambda asked: (200, {}) if asked.operation == "ReceiveMessage" else None
        async with transport.subscribe(queue, prefetch=10) as subscription:
            waiting = asyncio.ensure_future(subscription.receive())
            while len(front.operations("ReceiveMessage")) < 15:
                await asyncio.sleep(0.01)
            front.refuse = lambda _: None
            waiting.cancel()
            await asyncio.wait([waiting])
        waits = [each.what["WaitTimeSeconds"] for each in front.operations("ReceiveMessage")]
    assert waits[:2] == [1, 1], "a message that comes soon does not find it leaving late"
    assert sum(wait for wait in waits[:15] if wait < 20) < 60
    assert waits[12:15] == [20, 20, 20]


async def test_what_loses_messages_is_remarked(moto_server: MotoServer) -> None:
    """ElasticMQ knows of no retention."""
    async with opened(moto_server.url) as (transport, queue):
        ask = transport.desk.calls.ask
        words = {"QueueUrl": (await transport.desk.queues.place(queue)).url, "AttributeNames": ["QueueArn"]}
        arn = (await ask("get_queue_attributes", **words))["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 3})
        hasty, brief = f"{queue}-hasty", f"{queue}-brief"
        for name, attributes in ((hasty, {"RedrivePolicy": policy}), (brief, {"MessageRetentionPeriod": "3600"})):
            await ask("create_queue", QueueName=name, Attributes=attributes, tags={"asya.sh/actor": name})
        found = {remark.name: remark for remark in await transport.examine()}
        assert found["service"].text == transport.desk.calls.endpoint
        assert found[f"queue {hasty}"].state == "note"
        assert "after 3 receipts" in found[f"queue {hasty}"].text
        assert found[f"queue {brief}"].state == "bad"
        assert "after 3600 s" in found[f"queue {brief}"].text
        assert f"queue {queue}" not in found
        for name in (hasty, brief):
            await transport.delete(name)


async def test_declaring_a_pair_again_asks_little_and_gives_a_new_queue_its_policy(url: str) -> None:
    async with opened(url) as (transport, queue):
        dead = f"{queue}-dlq"
        pair = QueueSpec(name=queue), QueueSpec(name=dead)
        for spec in pair:
            await transport.declare(spec)
        before = transport.desk.calls.count.total()
        for spec in pair:
            await transport.declare(spec)
        assert transport.desk.calls.count.total() - before == 4, "each is found, and its tags are compared"
        async with opened(url, dead) as (other, _):
            await other.delete(queue)  # underneath
        for spec in pair:
            await transport.declare(spec)
        assert "RedrivePolicy" in await transport.desk.queues.attributes(queue)
        await transport.delete(dead)
