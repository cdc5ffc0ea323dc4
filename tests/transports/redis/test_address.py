"""What a URL may say, how its faults are answered, and that no message of any content is changed on its way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import Message, Send
from oncue.transports.redis.address import Address, parse
from oncue.transports.redis.codec import MAX_BODY, decode, encode

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Address(hosts=(("localhost", 6379),))),
        ("redis://h", Address(hosts=(("h", 6379),))),
        ("redis://h:1/2", Address(hosts=(("h", 1),), database=2)),
        ("redis://a,b:7,[::1]:8", Address(hosts=(("a", 6379), ("b", 7), ("::1", 8)))),
        ("redis://u:p%40ss@h", Address(hosts=(("h", 6379),), username="u", password="p@ss")),
        ("redis://:p@h?tag=x&timeout=2.5", Address(hosts=(("h", 6379),), password="p", tag="x", timeout=2.5)),
        ("redis://a,b?sentinel=main", Address(hosts=(("a", 26379), ("b", 26379)), sentinel="main")),
        ("redis://h?replicas=2", Address(hosts=(("h", 6379),), replicas=2)),
        ("rediss://h", Address(hosts=(("h", 6379),), tls={})),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no",
            Address(hosts=(("h", 6379),), tls={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}),
        ),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("/queue", "number of a database"),
        (":port/0", "expected a host and perhaps a port"),
        (":99999/0", "expected a host and perhaps a port"),
        ("?tog=x", "unknown parameter 'tog'"),
        ("?tag={x}", "parameter 'tag'"),
        ("?tag=", "parameter 'tag'"),
        ("?timeout=0", "parameter 'timeout'"),
        ("?timeout=soon", "parameter 'timeout'"),
        ("?replicas=-1", "parameter 'replicas'"),
        ("?ssl_ca_certs=/ca.pem", "needs 'rediss://'"),
    ],
)
def test_a_fault_in_a_url_is_named_without_its_secrets(rest: str, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason) as caught:
        parse(f"redis://user:{SECRET}@host{rest}")
    assert SECRET not in str(caught.value)


def test_an_address_can_be_shown() -> None:
    address = parse(f"rediss://user:{SECRET}@a,b:7/3?sentinel=main&sentinel_password={SECRET}")
    assert address.shown == "rediss://a:26379,b:7/3"
    assert SECRET not in repr(address)


texts = st.text(st.characters(codec="utf-8"))


@given(st.builds(Message, st.binary(), texts, st.dictionaries(texts, texts), st.none() | texts))
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode(encode(Send("work", message))) == message


@pytest.mark.parametrize(
    "message",
    [
        Message("text", "id"),  # type: ignore[arg-type]
        Message(b"", 1),  # type: ignore[arg-type]
        Message(b"", "id", key=1),  # type: ignore[arg-type]
        Message(b"", "id", {"a": 1}),  # type: ignore[dict-item]
        Message(b"", "\ud800"),
    ],
)
def test_what_is_no_message_is_refused(message: Message) -> None:
    with pytest.raises(InvalidValueError):
        encode(Send("work", message))


def test_a_body_that_is_too_large_is_refused() -> None:
    with pytest.raises(MessageTooLargeError):
        encode(Send("work", Message(bytes(MAX_BODY + 1), "id")))
