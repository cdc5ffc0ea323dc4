"""What Pub/Sub does in its own way: batches, delays beside the queue, FIFO queues, others' queues, its dead letters, fencing."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest
from transports.pubsub.conftest import Opened
from transports.words import receive, sends

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    InvalidValueError,
    LeaseLostError,
    QueueMismatchError,
    QueueNotFoundError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.pubsub import calls, open_pubsub, wire
from oncue.transports.pubsub.names import LOST, later


async def test_many_messages_cost_few_calls(url: str, opened: Opened) -> None:
    total = 2000
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

        async with transport.subscribe(queue, prefetch=500) as subscription:
            tasks = [asyncio.create_task(work()) for _ in range(500)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while len(subscription._leases):
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        asked = transport.desk.calls.count
    assert asked["Publish"] == 2
    assert asked.total() - before <= 0.05 * total, (
        f"calls for {total} messages: {asked}"
    )  # the emulator pulls by hundreds


async def test_a_delayed_message_waits_beside_its_queue(url: str, opened: Opened) -> None:
    async with opened(url) as (transport, queue):
        sent = time.time()
        await transport.send(Send(queue, Message(b"", "later"), 2.5))
        assert await transport.peek(queue, limit=1) == []
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            assert 2.5 <= time.time() - sent < 5.5
            assert (lease.message.id, lease.attempt) == ("later", 1)
            sent = time.time()
            await lease.nack(delay=1.5)
            lease = await receive(subscription)
            assert 1.5 <= time.time() - sent < 4.5
            assert lease.attempt == 2
            await lease.ack()


async def test_a_delayed_message_that_grows_old_is_sent_anew(
    url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncue.transports.pubsub.later._OLD", 500)
    monkeypatch.setattr("oncue.transports.pubsub.later.LONGEST_DEADLINE", 1)
    async with opened(url) as (transport, queue):
        sent = time.time()
        await transport.send(Send(queue, Message(b"", "later"), 4.0))
        before = transport.desk.calls.count["Publish"]
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            assert 4.0 <= time.time() - sent < 8.0
            assert (lease.message.id, lease.attempt) == ("later", 1)
            await lease.ack()
        assert transport.desk.calls.count["Publish"] - before >= 2


async def test_a_fifo_queue_delays_by_ten_minutes_at_most(url: str, opened: Opened) -> None:
    async with opened(url, fifo=True) as (transport, queue):
        with pytest.raises(InvalidValueError, match="600 s at most"):
            await transport.send(Send(queue, Message(b"", "1"), 601))
        await transport.send(Send(queue, Message(b"", "1", key="k"), 1.5), Send(queue, Message(b"", "2", key="k")))
        sent = time.time()
        async with transport.subscribe(queue, prefetch=2) as subscription:
            lease = await receive(subscription)
            assert (lease.message.id, lease.attempt) == ("1", 1)
            assert time.time() - sent >= 1.4
            with pytest.raises(InvalidValueError, match="600 s at most"):
                await lease.nack(delay=601)
            await lease.ack()
            await (await receive(subscription)).ack()


async def test_messages_of_other_programs_are_read_and_given_back_whole(url: str, opened: Opened) -> None:
    async with opened(url) as (transport, queue):
        place = await transport.desk.queues.place(queue)
        theirs = wire.PubsubMessage(data=b'{"id": "1"}', attributes={"colour": "red"})
        answer = await transport.desk.calls.ask(
            calls.PUBLISH, wire.PublishRequest(topic=place.topic, messages=[theirs])
        )
        async with transport.subscribe(queue, prefetch=1) as subscription:
            lease = await receive(subscription)
            assert lease.message == Message(b'{"id": "1"}', answer.message_ids[0], {"colour": "red"})
            await lease.nack()
            again = await receive(subscription)
            assert (again.message.id, again.message.body) == (lease.message.id, lease.message.body)
            assert again.received.text.others == {"colour": "red"}
            assert again.attempt == 2
            await again.ack()


async def test_a_subscription_of_others_is_used_as_it_is(url: str) -> None:
    transport = await open_pubsub(url)
    name = f"asya-{uuid4().hex[:8]}"
    queues = transport.desk.queues
    try:
        await transport.desk.calls.ask(calls.CREATE_TOPIC, wire.Topic(name=queues.topic(name)))
        theirs = wire.Subscription(
            name=queues.subscription(name), topic=queues.topic(name), ack_deadline_seconds=300, labels={"team": "x"}
        )
        await transport.desk.calls.ask(calls.CREATE, theirs)
        assert (await queues.get(name))[1] == QueueSpec(name=name, lease=300.0)
        assert name not in [spec.name for spec in await transport.queues()]
        await transport.declare(QueueSpec(name=name, lease=30.0))
        with pytest.raises(QueueMismatchError, match="fifo"):
            await transport.declare(QueueSpec(name=name, fifo=True))
        await transport.send(*sends(1, name))
        with pytest.raises(InvalidValueError, match="nothing can be delayed"):
            await transport.send(Send(name, Message(b"", "later"), 5.0))
        async with transport.subscribe(name, prefetch=1) as subscription:
            await (await receive(subscription)).ack()
    finally:
        await transport.delete(name)
        await transport.close()


async def test_a_queue_whose_topic_is_gone_is_none(url: str, opened: Opened) -> None:
    async with opened(url) as (transport, queue):
        place = await transport.desk.queues.place(queue)
        await transport.desk.calls.ask(calls.DELETE_TOPIC, wire.DeleteTopicRequest(topic=place.topic))
        with pytest.raises(QueueNotFoundError):
            await transport.send(*sends(1, queue))
        with pytest.raises(QueueMismatchError, match="topic is '_deleted-topic_'"):
            await transport.declare(QueueSpec(name=queue))
        assert any(each.state == "bad" and "topic was deleted" in each.text for each in await transport.examine())


async def test_what_is_delivered_too_often_goes_to_the_queues_dead_letters(url: str, opened: Opened) -> None:
    async with opened(f"{url}&attempts=5", lease=1.0) as (transport, queue):
        queues, dead = transport.desk.queues, f"{queue}-dlq"
        there = await queues._subscription(queue)
        assert there.dead_letter_policy.dead_letter_topic == queues.topic(LOST)
        assert there.dead_letter_policy.max_delivery_attempts == 5
        await transport.declare(QueueSpec(name=dead))
        there = await queues._subscription(queue)
        assert there.dead_letter_policy.dead_letter_topic == queues.topic(dead)
        await transport.send(*sends(1, queue))
        place = await queues.place(queue)
        for attempt in range(1, 6):
            request = wire.PullRequest(subscription=place.subscription, max_messages=1)
            (message,) = (await transport.desk.calls.ask(calls.PULL, request)).received_messages
            assert message.delivery_attempt == attempt
            await transport.desk.change(queue, place.subscription, message.ack_id, 0)
        await transport.peek(queue, limit=1)  # the emulator looks at its count when it would hand it out again
        async with transport.subscribe(dead, prefetch=1) as letters:
            lease = await receive(letters)
            assert (lease.message.id, lease.attempt) == ("0", 1)
            await lease.ack()
        await transport.delete(dead)


async def test_a_late_settlement_is_refused_by_the_service_itself(url: str, opened: Opened) -> None:
    async with opened(url, lease=60.0) as (transport, queue):
        await transport.send(*sends(3, queue))
        desk, place = transport.desk, await transport.desk.queues.place(queue)

        async def pulled() -> list[str]:
            request = wire.PullRequest(subscription=place.subscription, max_messages=3)
            return [each.ack_id for each in (await desk.calls.ask(calls.PULL, request)).received_messages]

        old = await pulled()
        await asyncio.gather(*(desk.change(queue, place.subscription, each, 0) for each in old))
        new = await pulled()
        assert len(old) == len(new) == 3
        # One of them is right: what is refused in a call leaves the others of it done.
        outcomes = await asyncio.gather(
            *(desk.delete(queue, place.subscription, each) for each in (*old, new[0])), return_exceptions=True
        )
        assert [type(each) for each in outcomes] == [LeaseLostError] * 3 + [type(None)]
        assert transport.desk.calls.count["Acknowledge"] == 1
        for each in old:
            with pytest.raises(LeaseLostError):
                await desk.change(queue, place.subscription, each, 10)
        await asyncio.gather(*(desk.change(queue, place.subscription, each, 0) for each in new[1:]))
        assert len(await transport.peek(queue, limit=10)) == 2


async def test_a_lease_longer_than_any_deadline_is_kept_by_asking_again(
    url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncue.transports.pubsub.queues.LONGEST_DEADLINE", 10)
    async with opened(url, lease=30.0) as (transport, queue):
        assert (await transport.desk.queues.place(queue)).deadline == 10
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=2) as subscription:
            lease = await receive(subscription)
            with pytest.raises(TimeoutError):
                await receive(subscription, within=13)
            await lease.ack()
        assert transport.desk.calls.count["ModifyAckDeadline"] >= 2


async def test_stopping_gives_back_what_was_fetched(url: str, opened: Opened) -> None:
    async with opened(url) as (transport, queue):
        await transport.send(*sends(50, queue))
        async with transport.subscribe(queue, prefetch=50) as subscription:
            await receive(subscription)
        async with transport.subscribe(queue, prefetch=50) as subscription:
            leases = [await receive(subscription) for _ in range(50)]
            assert {lease.attempt for lease in leases} == {1}
            await asyncio.gather(*(lease.ack() for lease in leases))


async def test_deleting_leaves_nothing_behind(url: str, opened: Opened) -> None:
    async with opened(url) as (transport, queue):
        queues = transport.desk.queues
        names = {queues.subscription(queue), queues.subscription(later(queue))}
        assert names <= {each.name for each in await queues.all()}
        await transport.delete(queue)
        assert not names & {each.name for each in await queues.all()}
        for topic in (queue, later(queue)):
            with pytest.raises(QueueNotFoundError):
                await transport.desk.calls.ask(calls.GET_TOPIC, wire.GetTopicRequest(topic=queues.topic(topic)))


async def test_the_examination_knows_the_emulator_and_foreign_settings(url: str, opened: Opened) -> None:
    async with opened(url) as (transport, queue):
        found = {each.name: each for each in await transport.examine()}
        assert found["service"].state == "note"
        assert "forgets it" in found["service"].text
        assert f"queue {queue}" not in found
        changed = wire.Subscription(name=transport.desk.queues.subscription(queue))
        changed.message_retention_duration.seconds = 3600
        request = wire.UpdateSubscriptionRequest(subscription=changed)
        request.update_mask.paths.append("message_retention_duration")
        await transport.desk.calls.ask(calls.UPDATE, request)
        found = {each.name: each for each in await transport.examine()}
        assert found[f"queue {queue}"].state == "bad"


async def test_nobody_there_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLostError, match="pubsub://my-project at 127.0.0.1:9") as caught:
        await open_pubsub("pubsub://my-project?emulator=127.0.0.1:9&timeout=2")
    assert "\n" not in str(caught.value)


async def test_no_credentials_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "PUBSUB_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(
        AccessDeniedError, match="no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS"
    ) as caught:
        await open_pubsub("pubsub://my-project?endpoint=127.0.0.1:9&timeout=2")
    assert "\n" not in str(caught.value)
