"""Messages and names: whatever is put in comes out, as other programs can read it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as some

from oncue.core.message import Message, Send
from oncue.transports.sqs.codec import ATTRIBUTE, decode, encode, repeat
from oncue.transports.sqs.names import FIFO, group_of, there, token_of

TEXT = some.text(some.characters(exclude_categories=["Cs"]))
NAME = some.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII), fullmatch=True).filter(
    lambda name: not name.endswith(FIFO)
)
ALLOWED = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


def delivered(entry: dict, count: int = 1) -> dict:
    return {
        "Body": entry["MessageBody"],
        "MessageAttributes": entry["MessageAttributes"],
        "Attributes": {"ApproximateReceiveCount": str(count), "SentTimestamp": "5"},
        "ReceiptHandle": "handle",
        "MessageId": "number",
    }


@given(some.binary() | TEXT.map(str.encode), TEXT, some.dictionaries(TEXT, TEXT), some.none() | TEXT)
def test_messages_come_out_as_they_went_in(body: bytes, id: str, headers: dict[str, str], key: str | None) -> None:
    message = Message(body, id, headers, key)
    entry = encode(Send("work", message), 2**20, 2**19).entry()
    assert ALLOWED.fullmatch(entry["MessageBody"])
    assert ALLOWED.fullmatch(entry["MessageAttributes"][ATTRIBUTE]["StringValue"])
    received = decode(delivered(entry))
    assert (received.message, received.attempts, received.lost) == (message, 1, 0)
    again = repeat(decode(delivered(entry, 3)), attempts=3, lost=2).entry()
    received = decode(delivered(again, 2))
    assert (received.message, received.attempts, received.lost) == (message, 5, 3)


def test_an_envelope_stays_readable() -> None:
    body = '{"id": "1", "payload": "grüße"}'
    assert encode(Send("work", Message(body.encode(), "1")), 2**20, 2**19).entry()["MessageBody"] == body


@given(TEXT.filter(bool), TEXT)
def test_what_others_wrote_is_read(body: str, attribute: str) -> None:
    entry = {"MessageBody": body, "MessageAttributes": {ATTRIBUTE: {"DataType": "String", "StringValue": attribute}}}
    received = decode(delivered(entry))
    assert (received.message.id, received.message.body) == ("number", body.encode())
    plain = {"MessageBody": body, "MessageAttributes": {"colour": {"DataType": "String", "StringValue": "red"}}}
    assert decode(delivered(plain)).message.headers == {"colour": "red"}
    assert repeat(decode(delivered(plain)), attempts=1).entry()["MessageAttributes"]["colour"]["StringValue"] == "red"


@given(some.lists(NAME, unique=True))
def test_no_two_names_are_one(names: list[str]) -> None:
    found = [there(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,75}", name) for name in found)


def test_names_of_asya_are_their_own() -> None:
    assert there("asya-greet") == "asya-greet"
    assert there(there("a.b")) != there("a.b")


@given(some.lists(some.none() | TEXT, unique=True))
def test_no_two_keys_are_one_group(keys: list[str | None]) -> None:
    groups = [group_of(key) for key in keys]
    assert len(set(groups)) == len(keys)
    assert all(re.fullmatch(r"[!-~]{1,128}", group) for group in groups)


def test_what_is_sent_for_another_message_is_no_repetition() -> None:
    assert token_of("a", "") == "a"
    assert len({token_of("a", ""), token_of("a", "1"), token_of("a", "2")}) == 3
    assert token_of("a", "1") == token_of("a", "1")
