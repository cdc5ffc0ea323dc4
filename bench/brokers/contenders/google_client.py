"""Google's own friendly client of Pub/Sub: a stream, ten threads for callbacks, leases that it makes longer by itself, and an
acknowledgement after success that the service answers, as it does for OnCue.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.brokers.contenders.on_pubsub import host_of, make_queue, paths_of
from bench.brokers.contest import Calls

NAME = "Google's client"
PACKAGES = {"pubsub": ("google-cloud-pubsub",)}
MODES = {"pubsub": {"batches": 1.0, "threads": 0.1}}
CHOICES = {"pubsub": ("100 messages", "1000 messages")}


@contextmanager
def sender(url: str, _mode: str) -> Iterator[Calls]:
    from google.cloud.pubsub_v1 import PublisherClient

    os.environ["PUBSUB_EMULATOR_HOST"] = host_of(url)
    make_queue(url)
    topic, _ = paths_of(url)
    client = PublisherClient()

    def one(number: int) -> None:
        client.publish(topic, b"%d" % number).result()

    def many(numbers: Sequence[int]) -> None:
        for sent in [client.publish(topic, b"%d" % number) for number in numbers]:
            sent.result()

    yield Calls(one, many)
    client.stop()


@contextmanager
def worker(url: str, add: Callable[[int], None], choice: str = "1000 messages") -> Iterator[None]:
    from google.cloud.pubsub_v1 import SubscriberClient
    from google.cloud.pubsub_v1.types import FlowControl

    os.environ["PUBSUB_EMULATOR_HOST"] = host_of(url)
    make_queue(url)
    _, subscription = paths_of(url)

    def work(message: Any) -> None:
        add(int(message.data))
        message.ack_with_response()

    most = int(choice.partition(" ")[0])
    with SubscriberClient() as client:
        pulling = client.subscribe(subscription, callback=work, flow_control=FlowControl(max_messages=most))
        yield
        pulling.cancel()
        pulling.result(30)
