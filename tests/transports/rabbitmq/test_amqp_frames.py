"""Our own frames against pamqp's, both ways, cut anywhere; and bytes that are no frames."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat
from transports.rabbitmq.amqp_support import patient

from oncue.transports.rabbitmq.amqp import (
    Channel,
    ChannelClosed,
    ConnectionClosed,
    Delivery,
    MalformedError,
    Returned,
    decode_properties,
    encode_properties,
)
from oncue.transports.rabbitmq.amqp.connection import Connection

NAMES = st.text(st.characters(codec="utf-8"), max_size=40)
EXCHANGES = st.text("azAZ09-_.:@#,/+ ", max_size=40)  # pamqp takes no others
TAGS = st.integers(0, 2**63 - 1)
BODIES = st.binary(max_size=100)
LONG = st.integers(0, 500).map(lambda size: bytes(number % 251 for number in range(size)))
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "message_id": NAMES.filter(bool),
        "headers": st.dictionaries(NAMES, NAMES | st.integers(-9, 9), max_size=3),
    },
)
CONSUMER = "1"


class Desk:
    """A connection without a socket, with two channels that write down what comes."""

    def __init__(self) -> None:
        self.connection = Connection()
        self.said: list[Any] = []
        self.channels = [self._channel(number) for number in (1, 2)]

    def _channel(self, number: int) -> Channel:
        channel = self.connection.channels[number] = Channel(self.connection, number)
        channel._consumers[CONSUMER.encode()] = CONSUMER, self._noting(number), self._noting(number)
        channel.on_return = self._noting(number)
        channel.on_confirm = lambda *confirm: self.said.append((number, confirm))
        return channel

    def _noting(self, number: int) -> Callable[[Any], None]:
        return lambda what: self.said.append((number, what))

    def take(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, end in pairwise(places):
            if start < end:
                self.connection.data_received(data[start:end])

    def written(self) -> list[tuple[int, Any]]:
        data = b"".join(self.connection._out)
        frames = []
        while data:
            size, number, found = frame.unmarshal(data)
            frames.append((number, found))
            data = data[size:]
        return frames


def content(number: int, method: Any, properties: dict[str, Any], payload: bytes, pieces: int) -> bytes:
    described = header.ContentHeader(0, len(payload), commands.Basic.Properties(**properties))
    step = max(1, -(-len(payload) // pieces))
    parts = [body.ContentBody(payload[at : at + step]) for at in range(0, len(payload), step)]
    return b"".join(frame.marshal(part, number) for part in (method, described, *parts))


# What comes: the bytes and what is to be made of them.

NUMBERS = st.sampled_from([1, 2])


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, Any]:
    number, tag, redelivered, payload = draw(NUMBERS), draw(TAGS), draw(st.booleans()), draw(BODIES)
    exchange, key, properties = draw(EXCHANGES), draw(NAMES), draw(PROPERTIES)
    method = commands.Basic.Deliver(CONSUMER, tag, redelivered, exchange, key)
    raw = commands.Basic.Properties(**properties).marshal()
    data = content(number, method, properties, payload, draw(st.integers(1, 4)))
    return data, (number, Delivery(CONSUMER, tag, redelivered, exchange, key, raw, payload))


@st.composite
def returns(draw: st.DrawFn) -> tuple[bytes, Any]:
    number, payload, exchange, key, properties = (
        draw(NUMBERS),
        draw(BODIES),
        draw(EXCHANGES),
        draw(NAMES),
        draw(PROPERTIES),
    )
    method = commands.Basic.Return(312, "NO_ROUTE", exchange, key)
    raw = commands.Basic.Properties(**properties).marshal()
    data = content(number, method, properties, payload, draw(st.integers(1, 4)))
    return data, (number, Returned(312, "NO_ROUTE", exchange, key, raw, payload))


@st.composite
def confirms(draw: st.DrawFn) -> tuple[bytes, Any]:
    number, tag, multiple = draw(NUMBERS), draw(TAGS), draw(st.booleans())
    acknowledged = draw(st.booleans())
    method = (
        commands.Basic.Ack(tag, multiple) if acknowledged else commands.Basic.Nack(tag, multiple, draw(st.booleans()))
    )
    return frame.marshal(method, number), (number, (tag, multiple, acknowledged))


BEATS = st.just((heartbeat.Heartbeat().marshal(), None))
STREAMS = st.lists(deliveries() | deliveries() | returns() | confirms() | BEATS, max_size=8)
CUTS = st.lists(st.integers(0, 4000), max_size=12)


def in_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """Hypothesis calls plain functions only."""

    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


@patient
@given(STREAMS, CUTS)
@in_a_loop
async def test_what_pamqp_writes_is_read_however_it_is_cut(stream: list[tuple[bytes, Any]], cuts: list[int]) -> None:
    desk = Desk()
    desk.take(b"".join(data for data, _ in stream), cuts)
    assert desk.said == [expected for _, expected in stream if expected is not None]
    assert not desk.connection.closed.done()


@patient
@given(st.lists(deliveries(), max_size=3))
@in_a_loop
async def test_it_is_read_byte_by_byte(stream: list[tuple[bytes, Any]]) -> None:
    desk = Desk()
    data = b"".join(data for data, _ in stream)
    desk.take(data, range(len(data)))
    assert desk.said == [expected for _, expected in stream]


@patient
@given(deliveries(), deliveries(), st.randoms())
@in_a_loop
async def test_messages_of_two_channels_may_come_mixed(
    first: tuple[bytes, Any], second: tuple[bytes, Any], random: Any
) -> None:
    def frames(data: bytes, number: int) -> list[bytes]:
        found = []
        while data:
            size = frame.unmarshal(data)[0]
            found.append(data[:1] + struct.pack(">H", number) + data[3:size])
            data = data[size:]
        return found

    rests = [frames(first[0], 1), frames(second[0], 2)]
    desk = Desk()
    while any(rests):
        rest = random.choice([rest for rest in rests if rest])
        desk.take(rest.pop(0))
    assert sorted(desk.said, key=lambda said: said[0]) == [(1, first[1][1]), (2, second[1][1])]


@patient
@given(
    st.lists(st.tuples(NUMBERS, EXCHANGES, NAMES, PROPERTIES, LONG), max_size=6),
    st.integers(60, 200),
)
@in_a_loop
async def test_what_is_published_pamqp_reads(messages: list[Any], largest: int) -> None:
    desk = Desk()
    published = {1: 0, 2: 0}
    for number, exchange, key, properties, payload in messages:
        channel = desk.channels[number - 1]
        channel._largest = largest
        raw = encode_properties(**properties)
        if len(raw) + 12 > largest:
            with pytest.raises(MalformedError, match="over the limit"):
                channel.publish(exchange, key, raw, payload)
            continue
        published[number] += 1
        assert channel.publish(exchange, key, raw, payload) == published[number]
        frames, desk.connection._out = desk.written(), []
        (_, method), (_, described), *rest = frames
        assert {of for of, _ in frames} == {number}
        assert (method.name, method.exchange, method.routing_key, method.mandatory, method.immediate) == (
            "Basic.Publish", exchange, key, True, False,
        )  # fmt: skip
        assert described.body_size == len(payload)
        assert described.properties == commands.Basic.Properties(**properties)
        assert b"".join(part.value for _, part in rest) == payload
        assert all(0 < len(part.value) <= largest for _, part in rest)


@patient
@given(NUMBERS, TAGS, st.booleans(), st.booleans())
@in_a_loop
async def test_acknowledgements_are_what_pamqp_makes_of_them(
    number: int, tag: int, multiple: bool, requeue: bool
) -> None:
    desk = Desk()
    channel = desk.channels[number - 1]
    channel.ack(tag, multiple)
    channel.nack(tag, multiple, requeue)
    (first, ack), (second, nack) = desk.written()
    assert (first, ack.name, ack.delivery_tag, ack.multiple) == (number, "Basic.Ack", tag, multiple)
    assert (second, nack.name, nack.delivery_tag) == (number, "Basic.Nack", tag)
    assert (nack.multiple, nack.requeue) == (multiple, requeue)


def test_names_that_are_too_long_are_refused() -> None:
    async def main() -> None:
        channel = Desk().channels[0]
        for exchange, key in (("e" * 256, ""), ("", "k" * 256), ("", "\ud800")):
            with pytest.raises((MalformedError, UnicodeError)):
                channel.publish(exchange, key, b"\0\0", b"")
        assert channel.publish("", "key", b"\0\0", b"") == 1

    asyncio.run(main())


# Bytes that are no frames


def settled(desk: Desk) -> None:
    """Whatever came, the connection goes on or has ended with a word."""
    fault = desk.connection._fault
    if fault is None:
        assert not desk.connection.closed.done()
        return
    assert type(fault) is ConnectionClosed
    assert desk.connection.closed.result() is fault
    for channel in desk.channels:
        assert type(channel.closed.result()) is ChannelClosed
        with pytest.raises((ConnectionClosed, ChannelClosed)):
            channel.ack(1)


@patient
@given(st.lists(st.binary(max_size=60), max_size=5))
@in_a_loop
async def test_random_bytes_end_it_or_wait_for_more(chunks: list[bytes]) -> None:
    desk = Desk()
    for chunk in chunks:
        desk.take(chunk)
    settled(desk)


METHODS = st.sampled_from(sorted(commands.INDEX_MAPPING)).map(lambda index: struct.pack(">I", index))


@patient
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3), METHODS, st.binary(max_size=60)), max_size=4), CUTS)
@in_a_loop
async def test_well_framed_nonsense_ends_it_or_is_taken(
    frames: list[tuple[int, int, bytes, bytes]], cuts: list[int]
) -> None:
    desk = Desk()
    data = b""
    for kind, number, index, rest in frames:
        data += struct.pack(">BHI", kind, number, len(index + rest)) + index + rest + b"\xce"
    desk.take(data, cuts)
    settled(desk)


@patient
@given(STREAMS, st.data())
@in_a_loop
async def test_flipped_lost_and_doubled_bytes_end_it_or_are_taken(
    stream: list[tuple[bytes, Any]], data: st.DataObject
) -> None:
    desk = Desk()
    raw = bytearray(b"".join(part for part, _ in stream))
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            at = data.draw(st.integers(0, len(raw) - 1))
            match data.draw(st.sampled_from(["flip", "lose", "double"])):
                case "flip":
                    raw[at] ^= data.draw(st.integers(1, 255))
                case "lose":
                    del raw[at : at + data.draw(st.integers(1, 9))]
                case "double":
                    raw[at:at] = raw[at : at + data.draw(st.integers(1, 9))]
    desk.take(bytes(raw), data.draw(CUTS))
    settled(desk)


DELIVER = frame.marshal(commands.Basic.Deliver(CONSUMER, 1, False, "", "key"), 1)
HEADER = frame.marshal(header.ContentHeader(0, 4, commands.Basic.Properties()), 1)
BODY = frame.marshal(body.ContentBody(b"body"), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"AMQP\0\0\x09\x01",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x01\0\x02\x02\x28",  # an alert of TLS
        struct.pack(">BHI", 1, 1, 131_072 - 7),  # a byte over the limit
        struct.pack(">BHI", 3, 1, 2**32 - 1),
        struct.pack(">BHI", 0, 0, 4),
        struct.pack(">BHI", 9, 0, 4),
        DELIVER[:-1] + b"\0",
        DELIVER + BODY,
        DELIVER + DELIVER,
        DELIVER + HEADER + HEADER,
        DELIVER + HEADER + DELIVER,
        DELIVER + HEADER + frame.marshal(body.ContentBody(b"longer"), 1),
        DELIVER + HEADER + frame.marshal(body.ContentBody(b"b"), 1) + BODY,
        DELIVER + HEADER + BODY[:-1] + b"\0",
        HEADER,
        BODY,
        DELIVER
        + struct.pack(">BHIHHQ", 2, 1, 12, 60, 0, 9)
        + b"\xce"
        + frame.marshal(body.ContentBody(b"some body"), 1),
        DELIVER + struct.pack(">BHIHHQ", 2, 1, 12, 60, 0, 0) + b"\xce",
        frame.marshal(commands.Basic.Ack(1), 3),
        frame.marshal(commands.Queue.DeclareOk("queue", 0, 0), 1),
        frame.marshal(commands.Basic.GetEmpty(), 1),
        frame.marshal(commands.Channel.CloseOk(), 1),
        frame.marshal(commands.Channel.Flow(True), 1),
        frame.marshal(commands.Connection.OpenOk(), 0),
        frame.marshal(commands.Connection.Tune(1, 2, 3), 0),
        frame.marshal(commands.Basic.Ack(1), 0),
        struct.pack(">BHIIB", 1, 1, 5, 0x003C003C, 200) + b"\xce",
        struct.pack(">BHIB", 1, 1, 1, 60) + b"\xce",
        struct.pack(">BHIIQ", 1, 1, 12, 0x003C0050, 1) + b"\xce",
        struct.pack(">BHII", 1, 1, 4, 0x00630063) + b"\xce",
        struct.pack(">BHI", 3, 0, 0) + b"\xce",
        struct.pack(">BHI", 8, 1, 0) + b"\xce",
    ],
)
async def test_what_is_out_of_order_ends_it(data: bytes) -> None:
    desk = Desk()
    desk.take(data)
    assert desk.connection.closed.done()
    assert desk.connection.closed.result().code == 501
    settled(desk)


async def test_the_largest_frame_is_taken() -> None:
    desk = Desk()
    payload = bytes(131_072 - 8)
    desk.take(content(1, commands.Basic.Deliver(CONSUMER, 1, False, "", "key"), {}, payload, 1))
    assert [delivery.body for _, delivery in desk.said] == [payload]


async def test_a_callback_that_raises_ends_the_connection_with_its_word() -> None:
    desk = Desk()
    desk.channels[0].on_confirm = lambda *_: {}["no such key"]
    desk.take(frame.marshal(commands.Basic.Ack(1), 1))
    assert "no such key" in desk.connection.closed.result().text


async def test_nothing_is_taken_after_a_callback_aborted(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.channels[0].on_confirm = lambda *_: desk.connection.abort()
    desk.take(frame.marshal(commands.Basic.Ack(1), 1) + frame.marshal(commands.Basic.Ack(1), 2) + b"nonsense")
    assert desk.said == []
    assert desk.connection.closed.result().code == 200
    assert not caplog.records


async def test_a_delivery_for_nobody_goes_back() -> None:
    desk = Desk()
    desk.take(content(1, commands.Basic.Deliver("gone", 7, False, "", "key"), {}, b"body", 1))
    [(number, nack)] = desk.written()
    assert (number, nack.name, nack.delivery_tag, nack.multiple, nack.requeue) == (1, "Basic.Nack", 7, False, True)
    assert decode_properties(b"\0\0").message_id is None
