"""Beside Asya on RabbitMQ: its settings, its topology, and its messages in both directions."""

from __future__ import annotations

import asyncio
import json

import pytest
from brokers.rabbitmq_server import RabbitMQServer, rabbitmq_server  # noqa: F401  # a fixture
from sidecar.pods import ASYAS, OURS, Pod, Queues, envelope
from transports.rabbitmq.support import get, publish


@pytest.mark.timeout(90)
@pytest.mark.parametrize("runtime", [OURS, ASYAS], ids=["ours", "asyas"])
def test_what_asya_publishes_is_worked_on_and_handed_to_its_next_sidecar(
    rabbitmq_server: RabbitMQServer,  # noqa: F811
    runtime: object,
) -> None:
    url = rabbitmq_server.vhost()
    Queues(url).make("theirs")
    host = {"ASYA_TRANSPORT": "rabbitmq", "ASYA_RABBITMQ_URL": url, "ONCUE_URL": ""}
    work = Pod(url, "a", "jobs.work", runtime=runtime, **host)  # type: ignore[arg-type]
    try:
        work.start()
        sent = envelope("m", {"n": 1}, actors=("a", "theirs"), trace="kept")
        for number in range(3):
            body = json.dumps(sent | {"id": f"m{number}"}).encode()
            # As Asya's gateway does it: no id of the message, no headers, the bare name as the routing key.
            asyncio.run(publish(url, "asya", "a", body, content_type="application/json", delivery_mode=2, timestamp=1))
        found = [json.loads(message.body) for message in Queues(url).messages("theirs", 3)]
        assert sorted(each["id"] for each in found) == ["m0", "m1", "m2"]
        assert {(each["trace"], each["route"]["current"]) for each in found} == {("kept", 1)}
        assert work.sidecar.stop() == 0
        asyncio.run(publish(url, "asya", "a", json.dumps(sent).encode()))
        assert asyncio.run(get(url, "asya-a")) is not None, "the queue stays, with what comes to it"
    finally:
        work.end()
