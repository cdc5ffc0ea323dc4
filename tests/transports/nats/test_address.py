"""What a URL may say, how its faults are answered, and that no message is changed on its way."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.errors import InvalidValueError, MessageTooLargeError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.nats.address import Address, parse
from oncue.transports.nats.codec import (
    Received,
    consumer_of,
    decode,
    delivery_of,
    due,
    due_of,
    encode,
    head_of,
    headers,
    history,
    left_of,
    names_of,
    schedule,
    status,
    stored_at,
    without_due,
)
from oncue.transports.nats.core import Login
from oncue.transports.nats.place import described, read_spec, stream_name, subject_of

SECRET = "hunter2"
HERE = (("h", 4222),)
MOST = 1000


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://", Address(hosts=(("localhost", 4222),))),
        ("nats://h", Address(hosts=HERE)),
        ("nats://h/", Address(hosts=HERE)),
        ("nats://a,b:7,[::1]:8", Address(hosts=(("a", 4222), ("b", 7), ("::1", 8)))),
        ("nats://u:p%40ss@h", Address(hosts=HERE, login=Login(user="u", password="p@ss"))),
        ("nats://t%40ken@h", Address(hosts=HERE, login=Login(token="t@ken"))),
        (
            "nats://h?prefix=jobs&replicas=3&timeout=2.5&duplicates=60",
            Address(hosts=HERE, prefix="jobs", replicas=3, timeout=2.5, duplicates=60.0),
        ),
        ("nats://h?domain=hub&inbox=_INBOX.me", Address(hosts=HERE, domain="hub", inbox="_INBOX.me")),
        ("nats://h?monitoring=http://h:8222", Address(hosts=HERE, monitoring="http://h:8222")),
        ("tls://h", Address(hosts=HERE, tls={})),
        ("tls://h?verify=verify_none", Address(hosts=HERE, tls={"verify": "verify_none"})),
        ("tls://h?handshake_first=true", Address(hosts=HERE, tls={}, handshake_first=True)),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("/stream", "expected nothing behind the hosts"),
        (":port", "expected a host and perhaps a port"),
        ("?replica=3", "unknown parameter 'replica'"),
        ("?replicas=0", "parameter 'replicas'"),
        ("?replicas=9", "parameter 'replicas'"),
        ("?timeout=0", "parameter 'timeout'"),
        ("?prefix=a-b", "parameter 'prefix'"),
        ("?prefix=", "parameter 'prefix'"),
        ("?domain=a.b", "parameter 'domain'"),
        ("?inbox=>", "parameter 'inbox'"),
        ("?duplicates=x", "parameter 'duplicates'"),
        ("?monitoring=here", "parameter 'monitoring'"),
        ("?cacertfile=/ca.pem", "needs 'tls://'"),
        ("?handshake_first=true", "handshake_first needs 'tls://'"),
        ("?credentials=/here.creds", "expected one of a user"),
    ],
)
def test_a_fault_in_a_url_is_named_without_its_secrets(rest: str, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason) as caught:
        parse(f"nats://user:{SECRET}@host{rest}")
    assert SECRET not in str(caught.value)


def test_files_that_cannot_be_read_are_a_fault_of_the_url() -> None:
    with pytest.raises(InvalidValueError, match="certificates cannot be used"):
        parse("tls://host?cacertfile=/nowhere/ca.pem")
    with pytest.raises(InvalidValueError, match="key cannot be used"):
        parse("nats://host?credentials=/nowhere/my.creds")


def test_an_address_shows_no_secrets() -> None:
    address = parse(f"tls://user:{SECRET}@host")
    assert SECRET not in f"{address!r}{address.shown}{address.endpoints()!r}{address.login!r}"


def test_hosts_share_the_time_to_be_reached_and_each_has_all_of_it_to_answer() -> None:
    found = parse("nats://a,b?timeout=3").endpoints()
    assert [(each.host, each.opening, each.timeout) for each in found] == [("a", 1.5, 3.0), ("b", 1.5, 3.0)]


def test_no_client_is_imported_for_a_url_of_this_transport() -> None:
    code = "import sys, oncue.transports.nats; sys.exit(bool({'nats', 'nkeys'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Names

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
PREFIXES = st.from_regex(r"[A-Za-z0-9_]{1,8}", fullmatch=True)


@given(PREFIXES, NAMES, PREFIXES, NAMES)
def test_no_two_queues_meet_in_a_stream(prefix: str, name: str, other_prefix: str, other: str) -> None:
    one, two = Address(hosts=HERE, prefix=prefix), Address(hosts=HERE, prefix=other_prefix)
    same = (prefix, name) == (other_prefix, other)
    assert (stream_name(one, name) == stream_name(two, other)) == same
    assert (subject_of(one, name) == subject_of(two, other)) == same
    assert not set(stream_name(one, name)) & set(" .*>/\\\t\r\n")
    assert subject_of(one, name).count(".") == 1


@given(
    st.text(max_size=50).filter(lambda text: "OnCue: " not in text),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=9),
)
def test_a_description_keeps_what_stood_there_and_the_settings(text: str, tags: dict[str, str]) -> None:
    spec = QueueSpec(name="work", lease=7.5, tags=tags)
    once = described(text, spec)
    assert read_spec({"description": once}) == spec
    assert described(once, spec) == once
    assert once.startswith(text.rstrip().lstrip())


def test_tags_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="tags"):
        described("", QueueSpec(name="work", tags={"a": "x" * 4096}))


# Messages

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HEADERS = st.dictionaries(TEXT | st.sampled_from(["Nats-Msg-Id", "nats-schedule", "Oncue", "oncue-lost"]), TEXT)
MESSAGES = st.builds(
    Message, st.binary(max_size=300), TEXT | st.just("Nats-Expected-Stream: x"), HEADERS, st.none() | TEXT
)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    written = headers(encode(Send("work", message), MOST), b"name-1")
    assert decode(written, message.body, 7) == Received(message, 0, 0, b"name-1")
    assert written.count(b"\r\n") == 4  # nothing in it begins a header of its own
    assert written.lower().count(b"nats-") == 1


@given(MESSAGES, st.integers(0, 99), st.integers(0, 99))
def test_a_message_that_is_given_back_keeps_all_but_its_history(message: Message, attempts: int, lost: int) -> None:
    received = Received(message, attempts, lost, b"first")
    assert decode(headers(head_of(message), b"s7", history(received)), message.body, 8) == received


@given(MESSAGES, st.floats(0, 4e9))
def test_a_message_that_is_moved_is_the_same(message: Message, at: float) -> None:
    delayed = headers(encode(Send("work", message), MOST), b"first", due(at))
    assert due_of(delayed) == pytest.approx(at, abs=0.001)
    moved = without_due(delayed, b"s9")
    assert decode(moved, message.body, 9) == Received(message, 0, 0, b"first")
    assert b"Nats-Msg-Id: s9\r\n" in moved
    assert b"Oncue-Due" not in moved


def test_messages_of_other_programs_are_read_as_well_as_they_can_be() -> None:
    received = decode(
        b"NATS/1.0\r\nNats-Msg-Id: x\r\nA: b\r\nA: c\r\nodd\xff: \xff\r\nOncue-Lost: many\r\n\r\n", b"{}", 3
    )
    assert received == Received(Message(b"{}", "x", {"A": "b", "odd\ufffd": "\ufffd"}), 0, 0, b"x")
    assert decode(b"", b"body", 3) == Received(Message(b"body", "nats-3"), 0, 0, b"n3")
    assert decode(b"NATS/1.0\r\nOncue: {}\r\n\r\n", b"", 3).message == Message(b"", "nats-3")


@pytest.mark.parametrize(
    ("header", "code", "left"),
    [
        (b"NATS/1.0 503\r\n\r\n", (503, ""), None),
        (b"NATS/1.0 404 No Messages\r\n\r\n", (404, "No Messages"), None),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 12\r\nNats-Pending-Bytes: 0\r\n\r\n",
            (408, "Request Timeout"),
            12,
        ),
        (b"NATS/1.0\r\nA: 404\r\n\r\n", (0, ""), None),
    ],
)
def test_what_is_no_message_is_told_apart(header: bytes, code: tuple[int, str], left: int | None) -> None:
    assert (status(header), left_of(header)) == (code, left)


def test_deliveries_are_read_with_and_without_a_domain() -> None:
    for reply in (
        b"$JS.ACK.oncue-a.oncue.2.77.5.1700500000000.0",
        b"$JS.ACK.hub.hash.oncue-a.oncue.2.77.5.1700500000000.0",
        b"$JS.ACK._.hash.oncue-a.oncue.2.77.5.1700500000000.0.random",
    ):
        assert (delivery_of(reply), consumer_of(reply), stored_at(reply)) == ((2, 77), "oncue", 1700.5)


@given(st.floats(0, 3e8, exclude_min=True), st.floats(-100, 100))
def test_a_schedule_is_never_early(seconds: float, skew: float) -> None:
    before = time.time()
    text = schedule(seconds, skew, b"oncue.work").decode().split("\r\n")[1]
    at = datetime.fromisoformat(text.removeprefix("Nats-Schedule: @at ")).timestamp()
    assert before + seconds + skew - 1e-3 <= at <= time.time() + seconds + skew + 0.0025


def test_what_is_sent_with_an_acknowledgement_has_the_same_names_when_it_is_sent_again() -> None:
    twin = Send("next", Message(b"", "1"))
    sends = [twin, twin, Send("other", twin.message), Send("next", Message(b"", "2"))]
    names = names_of(b"parent", sends)
    assert len(set(names)) == 4
    assert names == names_of(b"parent", sends)
    assert not set(names) & set(names_of(b"another", sends))


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(MessageTooLargeError):
        encode(Send("work", Message(bytes(MOST + 1), "1")), MOST)
    with pytest.raises(InvalidValueError, match="over the limit"):
        encode(Send("work", Message(b"", "1", {"n": "v" * 65_536})), MOST)
    with pytest.raises(InvalidValueError):
        encode(Send("work", Message(b"", "\ud800")), MOST)
