"""What contenders do on Pub/Sub: a topic, and a subscription with exactly-once delivery, so that each acknowledgement is answered.

The bare client is the generated one for asyncio: pulls of a thousand, some at a time, and one acknowledgement for what each brought.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

from bench.brokers.contest import BATCH, Calls

QUEUE = "work"


def host_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["emulator"][0]


def paths_of(url: str) -> tuple[str, str]:
    """Of the topic and its subscription."""
    project = urlsplit(url).netloc
    return f"projects/{project}/topics/{QUEUE}", f"projects/{project}/subscriptions/{QUEUE}"


def make_queue(url: str) -> None:
    """Where it is not there yet."""
    topic, subscription = paths_of(url)
    settings = {"topic": topic, "ackDeadlineSeconds": 60, "enableExactlyOnceDelivery": True}
    for path, body in ((topic, {}), (subscription, settings)):
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with suppress(HTTPError):  # it is there
            urlopen(Request(f"http://{host_of(url)}/v1/{path}", data, headers, method="PUT"), timeout=30).close()


def _client(url: str, module: str) -> Any:
    """The generated client of one half of the service."""
    from google import pubsub_v1
    from google.pubsub_v1.services import publisher, subscriber
    from grpc import aio

    kinds = {
        "publisher": (pubsub_v1.PublisherAsyncClient, publisher.transports.PublisherGrpcAsyncIOTransport),
        "subscriber": (pubsub_v1.SubscriberAsyncClient, subscriber.transports.SubscriberGrpcAsyncIOTransport),
    }
    client, transport = kinds[module]
    options = [("grpc.max_receive_message_length", -1)]
    return client(transport=transport(channel=aio.insecure_channel(host_of(url), options=options)))


@asynccontextmanager
async def bare_sender(url: str) -> AsyncIterator[Calls]:
    make_queue(url)
    topic, _ = paths_of(url)
    client = _client(url, "publisher")

    async def many(numbers: Sequence[int]) -> None:
        await client.publish(topic=topic, messages=[{"data": b"%d" % number} for number in numbers])

    yield Calls(lambda number: many([number]), many)
    await client.transport.close()


@asynccontextmanager
async def bare_worker(url: str, add: Callable[[int], None], at_once: int) -> AsyncIterator[None]:
    make_queue(url)
    _, subscription = paths_of(url)
    client = _client(url, "subscriber")

    async def work() -> None:
        while True:
            answer = await client.pull(subscription=subscription, max_messages=BATCH, timeout=3.0)
            for each in answer.received_messages:
                add(int(each.message.data))
            if answer.received_messages:
                ids = [each.ack_id for each in answer.received_messages]
                await client.acknowledge(subscription=subscription, ack_ids=ids)

    working = [asyncio.create_task(work()) for _ in range(at_once)]
    yield
    for task in working:
        task.cancel()
    await asyncio.wait(working)
    await client.transport.close()


def repid_server(url: str) -> Any:
    from repid.connections.pubsub import ChannelOverride, PubsubServer

    return PubsubServer(
        f"http://{host_of(url)}",
        default_project=urlsplit(url).netloc,
        use_google_auth=False,
        channel_overrides={QUEUE: ChannelOverride(topic=QUEUE, subscription=QUEUE)},
        stream_ack_deadline_seconds=60,
    )
