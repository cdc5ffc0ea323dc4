"""Streams and consumers, those that others made among them, and what the doctor says of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from brokers.nats_server import NATSServer
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from transports.nats.support import depth, opened, other_program, prefix_of, settled_down, taken
from transports.words import receive, sends

from oncue.core.errors import (
    ConfigError,
    IncompatibleStoreError,
    InvalidValueError,
    MessageTooLargeError,
    PartialSendError,
    QueueMismatchError,
    QueueNotFoundError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.nats import open_nats


async def test_a_queue_is_a_stream_with_one_consumer_that_never_gives_up(url: str) -> None:
    async with opened(url, "asya-a.b") as transport, other_program(url) as js:
        await transport.send(Send("asya-a.b", Message(b"body", "1")))
        stream = f"{prefix_of(url)}-asya-a=b"
        info = await js.stream_info(stream)
        assert info.config.retention == RetentionPolicy.WORK_QUEUE
        assert info.config.subjects == [f"{prefix_of(url)}.asya-a=b", f"{prefix_of(url)}.asya-a=b.later.*"]
        assert (info.config.max_age, info.config.max_msgs, info.config.max_bytes) == (0, -1, -1)
        assert info.config.duplicate_window == 120.0
        consumer = (await js.consumer_info(stream, "oncue")).config
        assert (consumer.max_deliver, consumer.max_ack_pending, consumer.ack_wait) == (-1, -1, 75.0)
        assert [spec.name for spec in await transport.queues()] == ["asya-a.b"]


async def test_prefixes_keep_deployments_apart(url: str) -> None:
    async with opened(url) as transport, opened(f"{url}x", "other") as other:
        await transport.send(*sends(1))
        with pytest.raises(QueueNotFoundError):
            await other.send(*sends(1))
        assert [spec.name for spec in await other.queues()] == ["other"]


async def test_messages_of_other_programs_come_and_ours_can_be_read_by_them(url: str) -> None:
    async with opened(url) as transport, other_program(url) as js:
        subject = f"{prefix_of(url)}.work"
        await js.publish(subject, b"theirs", headers={"Nats-Msg-Id": "id-1", "Trace": "abc"})
        await js.publish(subject, b"bare")
        async with transport.subscribe("work", prefetch=2) as subscription:
            first, second = await receive(subscription), await receive(subscription)
            assert first.message == Message(b"theirs", "id-1", {"Trace": "abc"})
            assert second.message.id.startswith("nats-")
            await first.nack()
            again = await receive(subscription)
            assert (again.message, again.attempt) == (first.message, 2)
            await again.ack()
            await second.ack()
        await transport.send(Send("work", Message(b"ours", "2", {"a": "b"})))
        pulled = await js.pull_subscribe_bind("oncue", f"{prefix_of(url)}-work")
        (message,) = await pulled.fetch(1)
        assert message.data == b"ours"
        assert message.header is not None
        assert message.header["Oncue"] == '["2",null,{"a":"b"}]'
        await message.ack_sync()
        assert await depth(transport) == (0, 0, 0)


async def test_a_stream_that_others_made_is_used_as_it_is(url: str) -> None:
    prefix = prefix_of(url)
    async with other_program(url) as js:
        config = StreamConfig(
            name=f"{prefix}-work",
            subjects=[f"{prefix}.work", f"{prefix}.work.later.*", f"{prefix}.mine"],
            retention=RetentionPolicy.WORK_QUEUE,
            description="made by hand",
            max_bytes=50_000_000,
        )
        await js.add_stream(config)
        before = (await js.stream_info(f"{prefix}-work")).config.as_dict()
        async with opened(url) as transport:
            after = (await js.stream_info(f"{prefix}-work")).config.as_dict()
            assert after.pop("description").startswith("made by hand\n")
            before.pop("description")
            assert after == before
            assert await transport.queues() == [QueueSpec(name="work")]
            await transport.send(*sends(1), Send("work", Message(b"", "late"), 0.2))
            async with transport.subscribe("work", prefetch=1) as subscription:
                for id in ("0", "late"):
                    lease = await receive(subscription)
                    assert lease.message.id == id
                    await lease.ack()
            with pytest.raises(QueueMismatchError) as caught:
                await transport.declare(QueueSpec(name="work", lease=5.0))
            assert caught.value.differences == {"lease": (60.0, 5.0)}


async def test_a_consumer_that_others_made_is_used_as_it_is(url: str) -> None:
    prefix = prefix_of(url)
    async with other_program(url) as js:
        await js.add_stream(
            StreamConfig(name=f"{prefix}-work", subjects=[f"{prefix}.work"], retention=RetentionPolicy.WORK_QUEUE)
        )
        await js.add_consumer(
            f"{prefix}-work", ConsumerConfig(durable_name="mine", ack_wait=25.0, ack_policy="explicit")
        )
        transport = await open_nats(url)
        try:
            with pytest.raises(QueueMismatchError) as caught:
                await transport.declare(QueueSpec(name="work"))
            assert caught.value.differences == {"lease": (20.0, 60.0)}
            await transport.declare(QueueSpec(name="work", lease=20.0))
            await transport.send(*sends(1))
            assert await taken(transport) == ["0"]
            with pytest.raises(IncompatibleStoreError, match="delayed messages need"):
                await transport.send(Send("work", Message(b"", "1"), 5.0))
        finally:
            await transport.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_deliver": 5}, "gives up on messages"),
        ({"headers_only": True}, "no bodies"),
        ({"deliver_subject": "somewhere"}, "push consumer"),
        ({"max_batch": 10}, "how many"),
        ({"max_expires": 5_000_000_000}, "does not let requests wait"),
    ],
)
async def test_a_consumer_that_would_lose_or_keep_messages_silently_is_refused(
    url: str, options: dict[str, Any], reason: str
) -> None:
    prefix = prefix_of(url)
    async with other_program(url) as js:
        await js.add_stream(
            StreamConfig(name=f"{prefix}-work", subjects=[f"{prefix}.work"], retention=RetentionPolicy.WORK_QUEUE)
        )
        config = {"durable_name": "mine", "ack_wait": 75_000_000_000, "ack_policy": "explicit", **options}
        request = json.dumps({"stream_name": f"{prefix}-work", "config": config}).encode()
        await js._nc.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{prefix}-work.mine", request)
        with pytest.raises(IncompatibleStoreError, match=reason):
            async with opened(url):
                pass


async def test_a_consumer_with_little_room_is_slow_but_never_stuck(url: str) -> None:
    prefix = prefix_of(url)
    async with other_program(url) as js:
        await js.add_stream(
            StreamConfig(name=f"{prefix}-work", subjects=[f"{prefix}.work"], retention=RetentionPolicy.WORK_QUEUE)
        )
        config = ConsumerConfig(
            durable_name="mine", ack_wait=75.0, ack_policy="explicit", max_ack_pending=1, max_waiting=1
        )
        await js.add_consumer(f"{prefix}-work", config)
        async with opened(url) as transport:
            await transport.send(*sends(20))
            seen = Counter[str]()

            async def work() -> None:
                async with transport.subscribe("work", prefetch=5) as subscription:
                    while seen.total() < 20:
                        with suppress(TimeoutError):
                            lease = await receive(subscription, within=1.0)
                            seen[lease.message.id] += 1
                            await lease.ack()

            await asyncio.gather(work(), work(), work())
            assert (len(seen), seen.total()) == (20, 20)
            assert await depth(transport) == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"retention": RetentionPolicy.LIMITS}, "expected 'workqueue'"),
        ({"subjects": ["other"]}, "does not have the subject"),
        ({"no_ack": True}, "does not answer"),
    ],
)
async def test_a_stream_that_can_be_no_queue_is_left_alone(url: str, changes: dict[str, object], reason: str) -> None:
    prefix = prefix_of(url)
    usual = {"subjects": [f"{prefix}.work"], "retention": RetentionPolicy.WORK_QUEUE}
    if "subjects" in changes:
        changes = {"subjects": [f"{prefix}.else"]}
    async with other_program(url) as js:
        await js.add_stream(StreamConfig(name=f"{prefix}-work", **{**usual, **changes}))
        with pytest.raises(IncompatibleStoreError, match=reason):
            async with opened(url):
                pass
        assert not (await js.stream_info(f"{prefix}-work")).config.description


async def test_what_jetstream_cannot_do_is_refused(url: str) -> None:
    async with opened(url) as transport:
        for spec in (QueueSpec(name="a", fifo=True), QueueSpec(name="b", retention=60.0)):
            with pytest.raises(ConfigError):
                await transport.declare(spec)
        with pytest.raises(InvalidValueError, match="tags"):
            await transport.declare(QueueSpec(name="c", tags={"a": "x" * 5000}))
        with pytest.raises(IncompatibleStoreError, match="replicas"):
            async with opened(f"{url}&replicas=3", "d"):
                pass
        assert [spec.name for spec in await transport.queues()] == ["work"]


async def test_what_a_stream_drops_for_its_age_is_gone_while_it_is_worked_on_and_before_it_is_due(url: str) -> None:
    """Why no retention is offered; who makes a stream with one has it like this, and the doctor says so."""
    prefix = prefix_of(url)
    async with other_program(url) as js:
        config = StreamConfig(
            name=f"{prefix}-work",
            subjects=[f"{prefix}.work", f"{prefix}.work.later.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_age=1.0,
            duplicate_window=1.0,
            allow_msg_schedules=True,
        )
        await js.add_stream(config)
        async with opened(url) as transport, transport.subscribe("work", prefetch=1) as subscription:
            await transport.send(*sends(2), Send("work", Message(b"", "late"), 60.0))
            held = await receive(subscription)
            assert await depth(transport) == (1, 1, 1)
            await settled_down(transport, "work")
            await held.nack()  # and is kept anew, if whoever held it lives
            assert (await receive(subscription)).message.id == held.message.id


async def test_a_message_that_a_stream_finds_too_large_is_refused_and_costs_no_other(url: str) -> None:
    prefix = prefix_of(url)
    async with other_program(url) as js:
        await js.add_stream(
            StreamConfig(
                name=f"{prefix}-work",
                subjects=[f"{prefix}.work"],
                retention=RetentionPolicy.WORK_QUEUE,
                max_msg_size=2000,
            )
        )
        async with opened(url) as transport:
            with pytest.raises(MessageTooLargeError):
                await transport.send(Send("work", Message(bytes(3000), "large")))
            with pytest.raises(PartialSendError) as caught:
                await transport.send(*sends(2), Send("work", Message(bytes(3000), "large")), *sends(2, first=2))
            assert list(caught.value.failed) == [2]
            with pytest.raises(MessageTooLargeError):
                await transport.send(Send("work", Message(bytes(transport.features.max_body + 1), "larger")))
            assert await taken(transport) == ["0", "1", "2", "3"]


# The doctor


async def test_the_doctor_says_what_acknowledged_means(server: NATSServer, url: str, tmp_path: Path) -> None:
    async with opened(url) as transport:
        remarks = {each.name: each for each in await transport.examine()}
        assert remarks["acknowledged"].state == "note"
        assert "monitoring=" in remarks["acknowledged"].text
        assert remarks["server"].state == "ok"
    async with opened(f"{url}&monitoring={server.monitoring}") as transport:
        remarks = {each.name: each for each in await transport.examine()}
        assert remarks["acknowledged"].state == "bad"
        assert "120 s" in remarks["acknowledged"].text
    safe = NATSServer(tmp_path, jetstream="sync_interval: always")
    safe.start()
    try:
        async with opened(f"{safe.url}?monitoring={safe.monitoring}") as transport:
            remarks = {each.name: each for each in await transport.examine()}
            assert remarks["acknowledged"].state == "ok"
    finally:
        safe.close()
    async with opened(f"{url}&monitoring=http://127.0.0.1:1") as transport:
        remarks = {each.name: each for each in await transport.examine()}
        assert remarks["acknowledged"].state == "bad"


async def test_the_doctor_names_streams_that_drop_messages(url: str) -> None:
    prefix = prefix_of(url)
    async with other_program(url) as js:
        for name, options in {
            "old": {"max_age": 60},
            "small": {"max_msgs": 10},
            "fast": {"storage": "memory"},
            "lazy": {"persist_mode": "async"},
        }.items():
            await js.add_stream(
                StreamConfig(
                    name=f"{prefix}-{name}",
                    subjects=[f"{prefix}.{name}"],
                    retention=RetentionPolicy.WORK_QUEUE,
                    **options,
                )
            )
        async with opened(url) as transport:
            bad = {each.name: each.text for each in await transport.examine() if each.state == "bad"}
        assert bad.keys() == {f"stream {prefix}-{name}" for name in ("old", "small", "fast", "lazy")}
        assert "60 s" in bad[f"stream {prefix}-old"]
