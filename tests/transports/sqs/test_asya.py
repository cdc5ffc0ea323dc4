"""Beside Asya on SQS: queues as its operator makes them, its settings, and its messages in both directions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from brokers.sqs_server import SQSServer
from sidecar.pods import ASYAS, OURS, Pod, envelope
from transports.sqs.support import opened
from transports.words import receive, sends

from oncue.core.errors import QueueMismatchError
from oncue.transports.base import QueueSpec
from oncue.transports.sqs import SQSTransport, open_sqs

DEAD = "asya-dlq"
"""Of all actors, as the operator makes it; none that we make has this name."""
SHOWN = ("VisibilityTimeout", "MessageRetentionPeriod", "RedrivePolicy")


async def made(transport: SQSTransport, *actors: str, retries: int = 3, lease: int = 300) -> dict[str, str]:
    """What Asya's operator does for actors; the URLs of their queues."""
    ask = transport.desk.calls.ask
    dead = await ask(
        "create_queue", QueueName=DEAD, Attributes={"MessageRetentionPeriod": "1209600"}, tags={"asya.sh/type": "dlq"}
    )
    words = {"QueueUrl": dead["QueueUrl"], "AttributeNames": ["QueueArn"]}
    arn = (await ask("get_queue_attributes", **words))["Attributes"]["QueueArn"]
    attributes = {
        "VisibilityTimeout": str(lease),
        "MessageRetentionPeriod": "345600",
        "RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": retries}),
    }
    found = {}
    for actor in actors:
        tags = {"asya.sh/actor": actor, "asya.sh/namespace": "default"}
        answer = await ask("create_queue", QueueName=f"asya-{actor}", Attributes=attributes, tags=tags)
        found[actor] = answer["QueueUrl"]
    return found


def new_actor() -> str:
    return f"a{uuid4().hex[:8]}"


async def test_a_queue_of_asya_is_used_and_left_as_it_is(url: str) -> None:
    actor = new_actor()
    queue = f"asya-{actor}"
    async with opened(url) as (transport, _):
        urls = await made(transport, actor)
        before = await transport.desk.queues.attributes(queue)
        assert (await transport.desk.queues.get(queue))[1].lease == 300
        assert queue in [spec.name for spec in await transport.queues()]
        await transport.declare(QueueSpec(name=queue, lease=30.0, tags={"a": "b"}))
        await transport.declare(QueueSpec(name=f"{queue}-dlq"))
        with pytest.raises(QueueMismatchError, match="fifo"):
            await transport.declare(QueueSpec(name=queue, fifo=True))
        after = await transport.desk.queues.attributes(queue)
        assert {name: after.get(name) for name in SHOWN} == {name: before.get(name) for name in SHOWN}
        tags = await transport.desk.calls.ask("list_queue_tags", QueueUrl=urls[actor])
        assert tags["Tags"] == {"asya.sh/actor": actor, "asya.sh/namespace": "default"}


async def test_its_redrive_policy_counts_deaths_and_not_what_is_refused(url: str) -> None:
    queue = f"asya-{(actor := new_actor())}"
    async with opened(url) as (transport, _):
        await made(transport, actor, retries=2, lease=1)
        await transport.declare(QueueSpec(name=queue, lease=1.0))
        await transport.send(*sends(1, queue))
        async with transport.subscribe(queue, prefetch=1) as subscription:
            for attempt in (1, 2, 3):
                lease = await receive(subscription)
                assert lease.attempt == attempt
                await lease.nack()
            for attempt in (4, 5):  # and now its holder dies
                assert (await receive(subscription)).attempt == attempt
            waiting = asyncio.ensure_future(subscription.receive())
            async with transport.subscribe(DEAD, prefetch=1) as letters:
                lease = await receive(letters)
                assert lease.message.id == "0"
                await lease.ack()
            waiting.cancel()
            await asyncio.wait([waiting])


@pytest.fixture
def pod(sqs_server: SQSServer) -> Iterator[Callable[..., Pod]]:
    """A pod with no settings but Asya's."""
    pods: list[Pod] = []

    def start(actor: str, **more: Any) -> Pod:
        settings = {
            "ASYA_TRANSPORT": "sqs",
            "ASYA_AWS_REGION": "eu-west-1",
            "ASYA_SQS_ENDPOINT": sqs_server.endpoint,
            "ASYA_SQS_VISIBILITY_TIMEOUT": "300",
            "ASYA_SQS_WAIT_TIME_SECONDS": "5",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "ONCUE_URL": "",
        }
        pods.append(Pod(sqs_server.url, actor, "jobs.work", **settings, **more))
        pods[-1].start()
        return pods[-1]

    yield start
    for each in pods:
        each.end()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("runtime", [OURS, ASYAS], ids=["ours", "asyas"])
def test_what_asya_sends_is_worked_on_and_handed_to_its_next_sidecar(
    sqs_server: SQSServer, pod: Callable[..., Pod], runtime: object
) -> None:
    first, then = new_actor(), new_actor()

    async def begin() -> dict[str, str]:
        transport = await open_sqs(sqs_server.url)
        urls = await made(transport, first, then, "happy-end", "error-end")
        for number in range(3):  # as its gateway and its sidecar send: a body, and nothing else
            body = json.dumps(envelope(f"m{number}", {"n": 1}, actors=(first, then), trace="kept"))
            await transport.desk.calls.ask("send_message", QueueUrl=urls[first], MessageBody=body)
        await transport.close()
        return urls

    async def end(urls: dict[str, str]) -> list[dict[str, Any]]:
        """As its sidecar receives: one message at a time, of which it reads the body."""
        transport = await open_sqs(sqs_server.url)
        ask, found = transport.desk.calls.ask, []
        async with asyncio.timeout(30):
            while len(found) < 3:
                words = {"MaxNumberOfMessages": 1, "WaitTimeSeconds": 5, "VisibilityTimeout": 300}
                for message in (await ask("receive_message", extra=5, QueueUrl=urls[then], **words)).get(
                    "Messages", ()
                ):
                    found.append(json.loads(message["Body"]))
                    await ask("delete_message", QueueUrl=urls[then], ReceiptHandle=message["ReceiptHandle"])
        left = await transport.desk.queues.attributes(f"asya-{first}")
        assert left["ApproximateNumberOfMessages"] == left["ApproximateNumberOfMessagesNotVisible"] == "0"
        await transport.close()
        return found

    urls = asyncio.run(begin())
    work = pod(first, runtime=runtime)
    found = asyncio.run(end(urls))
    assert sorted(each["id"] for each in found) == ["m0", "m1", "m2"]
    assert {(each["trace"], each["route"]["current"]) for each in found} == {("kept", 1)}
    assert work.sidecar.stop() == 0
