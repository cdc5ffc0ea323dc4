"""Messages, names and labels as they lie there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from oncue.core.errors import IncompatibleStoreError, InvalidValueError, MessageTooLargeError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.pubsub import labels
from oncue.transports.pubsub.codec import ATTRIBUTE, Received, decode, encode, written
from oncue.transports.pubsub.names import here, later, order_of, there
from oncue.transports.pubsub.wire import PullResponse


def arrived(message: Any, attempt: int = 0) -> Received:
    """It, as a pull brings it."""
    answer = PullResponse()
    received = answer.received_messages.add(ack_id="handle", delivery_attempt=attempt)
    received.message.CopyFrom(message)
    received.message.message_id = "7"
    received.message.publish_time.FromMilliseconds(1_700_000_000_000)
    return decode(received)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"name": "value"},
        {"": "", "ü": "✓" * 3000, "\0": "\n"},
        {f"name-{number}": "x" * 500 for number in range(100)},
    ],
)
def test_a_message_comes_back_as_it_was(headers: Mapping[str, str]) -> None:
    message = Message(bytes(range(256)), "id ✓", headers, "a key")
    sent = written(encode(Send("work", message), 10_000))
    assert all(len(value.encode()) <= 1024 for value in sent.attributes.values())
    assert len(sent.attributes) <= 100
    found = arrived(sent, attempt=3)
    assert found.message == message
    assert (found.attempts, found.lost, found.sent, found.handle) == (3, 2, 1_700_000_000_000, "handle")


def test_history_is_added_to_what_is_counted_there() -> None:
    text = encode(Send("work", Message(b"", "1")), 10).changed(attempts=4, lost=1, delay=1500)
    found = arrived(written(text), attempt=2)
    assert (found.attempts, found.lost) == (6, 2)
    assert found.due - found.sent == 1500


def test_a_message_of_another_program_has_its_attributes_as_headers() -> None:
    sent = written(encode(Send("work", Message(b"{}", "1")), 10))
    del sent.attributes[ATTRIBUTE]
    sent.attributes.update({"colour": "red", "googclient_schemaencoding": "JSON"})
    sent.ordering_key = "k"
    found = arrived(sent)
    assert found.message == Message(b"{}", "7", {"colour": "red"}, "k")
    assert (found.attempts, found.lost) == (1, 0)
    again = arrived(written(found.text.changed(attempts=1)))
    assert again.message == Message(b"{}", "7", {}, "k")
    assert again.text.others == {"colour": "red"}


def test_a_head_that_no_message_can_carry_is_refused() -> None:
    text = encode(Send("work", Message(b"", "1", {"name": "x" * 110_000})), 10)
    with pytest.raises(MessageTooLargeError):
        written(text)
    with pytest.raises(InvalidValueError, match="Unicode"):
        encode(Send("work", Message(b"", "\ud800")), 10)


def test_names_are_the_same_there_wherever_they_can_be() -> None:
    assert there("asya-greet") == "asya-greet"
    odd = ["a", "ab", "1abc", "google", "goog-x", "0.x"]
    assert [there(name) for name in odd] == [f"oncue~{name}" for name in odd]
    assert [here(there(name)) for name in [*odd, "asya-greet"]] == [*odd, "asya-greet"]
    assert later("asya-greet") == "asya-greet~later"
    assert len(later(there("9" + "x" * 127))) < 255


def test_keys_are_ordering_keys_and_no_two_are_alike() -> None:
    keys = [None, "", "k", "oncue.none", "oncue.k", "x" * 1024, "x" * 1025, "ü" * 600]
    found = [order_of(key) for key in keys]
    assert len(set(found)) == len(keys)
    assert all(0 < len(each.encode()) <= 1024 for each in found)
    assert order_of("k") == "k"


@pytest.mark.parametrize(
    "spec",
    [
        QueueSpec(name="work"),
        QueueSpec(name="work", lease=0.125, fifo=True, retention=1e6, tags={"team": "a", "Owner": "Ünal & co"}),
        QueueSpec(name="work", tags={f"tag-{number}": "x" * 20 for number in range(60)}),
    ],
)
def test_what_a_queue_was_declared_as_fits_into_labels(spec: QueueSpec) -> None:
    found = labels.labels(spec)
    assert len(found) <= 64
    for name, value in found.items():
        assert len(name) <= 63 and len(value) <= 63
        assert name.isascii() and name == name.lower() and value == value.lower()
    assert labels.is_declared(found)
    assert labels.spec("work", {**found, "goog-terraform": "x"}, fifo=spec.fifo) == spec
    if "team" in spec.tags:
        assert found["team"] == "a"


def test_labels_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="room"):
        labels.labels(QueueSpec(name="work", tags={"long": "x" * 5000}))
    with pytest.raises(IncompatibleStoreError, match="another version"):
        labels.spec("work", {"oncue-spec-0": "nonsense!"}, fifo=False)
