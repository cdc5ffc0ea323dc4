"""What a URL may say, how its faults are answered, how long delays become, and that no message is changed on its way."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import Message, Send
from oncue.transports.rabbitmq import codec
from oncue.transports.rabbitmq.address import Address, parse
from oncue.transports.rabbitmq.amqp import Delivery, MalformedError, decode_properties, encode_properties
from oncue.transports.rabbitmq.codec import MAX_BODY, Received, decode, encode, repeat
from oncue.transports.rabbitmq.ladder import LONGEST, key_of, levels

SECRET = "hunter2"
HERE = (("h", 5672),)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://", Address(hosts=(("localhost", 5672),))),
        ("amqp://h", Address(hosts=HERE)),
        ("amqp://h/", Address(hosts=HERE)),
        ("amqp://h/%2F", Address(hosts=HERE)),
        ("amqp://h:1/jobs", Address(hosts=(("h", 1),), vhost="jobs")),
        ("amqp://h/a%2Fb", Address(hosts=HERE, vhost="a/b")),
        ("amqp://a,b:7,[::1]:8", Address(hosts=(("a", 5672), ("b", 7), ("::1", 8)))),
        ("amqp://u:p%40ss@h", Address(hosts=HERE, user="u", password="p@ss")),
        (
            "amqp://h?queues=classic&timeout=2.5&heartbeat=5",
            Address(hosts=HERE, queues="classic", timeout=2.5, heartbeat=5),
        ),
        ("amqp://h?exchange=", Address(hosts=HERE, exchange="")),
        ("amqp://h?exchange=jobs&consumer_timeout=7200", Address(hosts=HERE, exchange="jobs", consumer_timeout=7200.0)),
        ("amqps://h", Address(hosts=(("h", 5671),), tls={})),
        ("amqps://h?verify=verify_none", Address(hosts=(("h", 5671),), tls={"verify": "verify_none"})),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("/one/two", "expected one virtual host"),
        (":port/", "expected a host and perhaps a port"),
        ("?quues=classic", "unknown parameter 'quues'"),
        ("?queues=stream", "parameter 'queues'"),
        ("?timeout=0", "parameter 'timeout'"),
        ("?heartbeat=0", "parameter 'heartbeat'"),
        ("?exchange=amq.topic", "parameter 'exchange'"),
        ("?consumer_timeout=never", "parameter 'consumer_timeout'"),
        ("?cacertfile=/ca.pem", "needs 'amqps://'"),
        ("?verify=no", "parameter 'verify'"),
    ],
)
def test_a_fault_in_a_url_is_named_without_its_secrets(rest: str, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason) as caught:
        parse(f"amqp://user:{SECRET}@host{rest}")
    assert SECRET not in str(caught.value)


def test_certificates_that_cannot_be_read_are_a_fault_of_the_url() -> None:
    with pytest.raises(InvalidValueError, match="certificates cannot be used"):
        parse("amqps://host?cacertfile=/nowhere/ca.pem")


def test_an_address_shows_no_secrets() -> None:
    address = parse(f"amqps://user:{SECRET}@host/jobs")
    assert SECRET not in f"{address!r}{address.shown}{address.endpoints('x')!r}"


def test_the_client_is_imported_when_the_first_url_is_opened() -> None:
    code = "import sys, oncue.transports; sys.exit('pamqp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Delays


@given(st.floats(0, LONGEST, exclude_min=True))
def test_a_delay_is_never_shorter_and_at_most_a_little_longer_than_asked(seconds: float) -> None:
    way = levels(seconds)
    total = sum(2**level for level in way) / 1000
    assert seconds - 1e-9 <= total <= max(seconds * 33 / 32, seconds + 0.016) + 0.001
    assert way == sorted(set(way), reverse=True)
    assert all(4 <= level <= 31 for level in way)
    assert len(way) <= 6
    assert len(key_of("q" * 128, way)) <= 255


@pytest.mark.parametrize("seconds", [LONGEST + 1, -1, float("nan")])
def test_a_delay_that_cannot_be_had_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidValueError, match="delay"):
        levels(seconds)


# Messages

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def delivered(properties: bytes, body: bytes, *, redelivered: bool = False) -> Delivery:
    return Delivery("1", 1, redelivered, "", "work", properties, body)


@given(
    st.builds(
        Message,
        st.binary(max_size=300),
        TEXT | st.text("ä", min_size=300, max_size=400),
        st.dictionaries(TEXT | st.sampled_from(["CC", "bcc", "x-death", "x-delivery-count", "x-oncue-lost"]), TEXT),
        st.none() | TEXT,
    )
)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    received = decode(delivered(*encode(Send("work", message))))
    assert received.message == message
    assert (received.attempts, received.lost) == (0, 0)


@given(
    st.builds(Message, st.binary(max_size=9), TEXT, st.dictionaries(TEXT, TEXT), st.none() | TEXT), st.integers(0, 99)
)
def test_a_message_that_is_given_back_keeps_all_but_its_history(message: Message, attempts: int) -> None:
    first = delivered(*encode(Send("work", message)))
    history = replace(decode(first), attempts=attempts, lost=attempts // 2)
    again = decode(delivered(repeat(first, history, retention=None), first.body))
    assert again.message == message
    assert (again.attempts, again.lost, again.returned) == (attempts, attempts // 2, 0)


def test_what_the_server_counted_is_added_and_not_repeated() -> None:
    headers = {
        "x-oncue-attempts": 3,
        "x-oncue-lost": 1,
        "x-delivery-count": 2,
        "x-death": [{"count": 1}],
        "mine": "yes",
    }
    there = delivered(encode_properties(headers=headers, message_id="1", content_type="text/plain"), b"")
    received = decode(there)
    assert received == Received(Message(b"", "1", {"mine": "yes"}), 5, 3, None, 2)
    properties = decode_properties(repeat(there, received, retention=None))
    assert properties.headers == {"mine": "yes", "x-oncue-attempts": 5, "x-oncue-lost": 3}
    assert properties.content_type == "text/plain"


def test_messages_of_other_programs_are_read_as_well_as_they_can_be() -> None:
    headers = {"number": 7, "flag": True, "bytes": bytearray(b"\xff"), "nothing": None, "text": "yes"}
    received = decode(delivered(encode_properties(headers=headers, timestamp=1), b"{}"))
    assert received.message.headers == {"number": "7", "flag": "True", "bytes": "\ufffd", "text": "yes"}
    again = decode(delivered(encode_properties(timestamp=1), b"{}"))
    other = decode(delivered(encode_properties(timestamp=2), b"{}"))
    assert received.message.id == again.message.id != other.message.id
    assert decode(delivered(b"\xff\xff", b"x")).message.body == b"x"


def test_what_cannot_be_written_again_costs_no_more_than_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = delivered(encode_properties(headers={"strange": {"in": "it"}, "plain": "yes"}, message_id="1"), b"body")

    def refuse(**properties: Any) -> bytes:
        if "strange" in properties["headers"]:
            raise MalformedError("a value of a kind that is not known here")
        return encode_properties(**properties)

    monkeypatch.setattr(codec, "encode_properties", refuse)
    again = decode(delivered(repeat(strange, decode(strange), retention=None), b"body"))
    assert again.message == Message(b"body", "1", {"plain": "yes"})


def test_what_is_kept_for_a_time_has_what_is_left_of_it_when_it_is_given_back() -> None:
    old = delivered(encode_properties(message_id="1", timestamp=1), b"")
    assert decode_properties(repeat(old, decode(old), retention=60)).expiration == "1"
    new = delivered(*encode(Send("work", Message(b"", "1"))))
    left = decode_properties(repeat(new, decode(new), retention=60)).expiration
    assert left is not None
    assert 55_000 < int(left) <= 60_000
    delayed = decode_properties(repeat(new, decode(new), retention=60, due=1000.0))
    assert delayed.expiration is None
    assert delayed.timestamp is not None
    assert delayed.timestamp > (decode(new).sent or 0) + 990


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(MessageTooLargeError):
        encode(Send("work", Message(bytes(MAX_BODY + 1), "1")))
    for headers in ({"n" * 256: "v"}, {"n": "v" * 130_000}):
        with pytest.raises(InvalidValueError):
            encode(Send("work", Message(b"", "1", headers)))
