"""What is done over a connection: calls with an answer, publishing with confirms, and consuming with acknowledgements."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
from pamqp import commands, frame
from pamqp.base import Frame

from oncue.transports.rabbitmq.amqp.faults import REPLY_SUCCESS, ChannelClosed, ClosedError, MalformedError
from oncue.transports.rabbitmq.amqp.properties import short_text

if TYPE_CHECKING:
    from oncue.transports.rabbitmq.amqp.connection import Connection

_PUBLISH, _DELIVER, _ACK, _NACK = 0x003C0028, 0x003C003C, 0x003C0050, 0x003C0078
_METHOD, _END = struct.Struct(">BHII"), b"\xce"
_HEADER = struct.Struct(">BHIHHQ")
_BODY = struct.Struct(">BBHI")  # with the end of the frame before it
_ACKNOWLEDGE = struct.Struct(">BHIIQBB")
_INDEX = struct.Struct(">I")
_TAGGED = struct.Struct(">QB")
_CONTENT = struct.Struct(">HHQ")
_ROUTES = 1000
"""So many pairs of exchange and routing key are kept in writing."""


class Delivery(msgspec.Struct, gc=False):
    """A message from a queue. `properties` are raw: `decode_properties` reads them."""

    consumer_tag: str
    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes


class Returned(msgspec.Struct, gc=False):
    """A message that was published to where there is no queue for it."""

    code: int
    text: str
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes


def _nothing(*_: object) -> None:
    """For what nobody wants to hear."""


class Channel:
    """One of the streams of a connection, made by `Connection.channel`.

    Callbacks are called in the event loop in the order of what comes, and must not raise: that ends the connection. What is
    written goes out once per turn of the loop. All of it raises `ChannelClosed` or `ConnectionClosed` after the end.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self.closed: asyncio.Future[ChannelClosed] = asyncio.get_running_loop().create_future()
        self.on_confirm: Callable[[int, bool, bool], None] = _nothing
        self.on_return: Callable[[Returned], None] = _nothing
        self._connection = connection
        self._largest = connection.frame_max - 8
        self._fault: ClosedError | None = None
        self._calls: deque[tuple[Frame, asyncio.Future[Any]]] = deque()
        self._published = 0
        self._routes: dict[tuple[str, str], bytes] = {}
        self._consumers: dict[bytes, tuple[str, Callable[[Delivery], None], Callable[[str], None]]] = {}
        self._tags = count(1)
        # What is being received: whom it is for and what it is, and its properties once they came.
        self._content: tuple[Callable[[Any], None], Callable[..., Any], tuple[Any, ...]] | None = None
        self._properties: bytes | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._place = b"", ("", "")

    # Calls

    async def call(self, request: Frame) -> Any:
        """Give a method and return its answer; calls are answered in their order. Cancelling gives up the answer only."""
        return await self._ask(request)

    def _ask(self, request: Frame) -> asyncio.Future[Any]:
        self._check()
        answer = asyncio.get_running_loop().create_future()
        self._connection.send(frame.marshal(request, self.number))
        self._calls.append((request, answer))
        return answer

    async def close(self) -> None:
        """Close, and return when the server has said so; cancelling does not stop it. May be repeated."""
        self.leave()
        await asyncio.wait([self.closed])

    def leave(self) -> None:
        """Close without waiting."""
        if self._fault is None:
            self._connection.send(frame.marshal(commands.Channel.Close(REPLY_SUCCESS, "", 0, 0), self.number))
            self.stop(ChannelClosed(REPLY_SUCCESS, "the channel was closed by this side"))

    def stop(self, fault: ClosedError) -> None:
        """Take no more calls, and hear nothing more but the end."""
        self._fault = fault
        for _, answer in self._calls:
            if not answer.done():
                answer.set_exception(type(fault)(*fault.args))
        self._calls.clear()

    def end(self, fault: ClosedError) -> None:
        """It is over."""
        if self._fault is None:
            self.stop(fault)
        if not self.closed.done():
            self.closed.set_result(ChannelClosed(*fault.args))

    def _check(self) -> None:
        if self._fault is not None:
            raise type(self._fault)(*self._fault.args)

    # Publishing

    async def confirm(self) -> None:
        """Have everything confirmed that is published; comes before the first message."""
        await self.call(commands.Confirm.Select())

    def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> int:
        """Send a message that is to be returned where no queue takes it; its number, from 1 on, which `on_confirm` will name.

        Never waits: `Connection.writable` does. Raises `MalformedError` for a message that cannot be sent.
        """
        if self._fault is not None:
            self._check()
        method = self._routes.get((exchange, routing_key)) or self._route(exchange, routing_key)
        size, number, largest = len(body), self.number, self._largest
        if len(properties) + 12 > largest:
            raise MalformedError(f"properties of {len(properties)} bytes are over the limit of {largest - 12} bytes")
        header = _HEADER.pack(2, number, len(properties) + 12, 60, 0, size)
        if 0 < size <= largest:
            self._connection.send(method, header, properties, _BODY.pack(0xCE, 3, number, size), body, _END)
        else:
            frames = [method, header, properties]
            for start in range(0, size, largest):
                part = body[start : start + largest]
                frames += (_BODY.pack(0xCE, 3, number, len(part)), part)
            self._connection.send(*frames, _END)
        self._published += 1
        return self._published

    def _route(self, exchange: str, routing_key: str) -> bytes:
        """The frame of a method that publishes, kept for the next time."""
        where = short_text(exchange) + short_text(routing_key)
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        # Two bytes that are unused, and a last one that makes it mandatory.
        method = _METHOD.pack(1, self.number, 7 + len(where), _PUBLISH) + b"\0\0" + where + b"\1" + _END
        self._routes[exchange, routing_key] = method
        return method

    # Consuming

    async def consume(
        self,
        queue: str,
        deliver: Callable[[Delivery], None],
        cancelled: Callable[[str], None],
        *,
        prefetch: int,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Have up to `prefetch` messages of a queue given to `deliver` at a time; the consumer's tag.

        `cancelled` gets the tag when the server ends it, as when the queue is deleted. After this was cancelled, nothing is
        delivered, and what was on its way goes back.
        """
        self._ask(commands.Basic.Qos(prefetch_count=prefetch)).cancel()
        tag = str(next(self._tags))
        self._consumers[tag.encode()] = tag, deliver, cancelled
        try:
            await self.call(commands.Basic.Consume(queue=queue, consumer_tag=tag, arguments=dict(arguments or {})))
        except asyncio.CancelledError:
            if self._fault is None:
                del self._consumers[tag.encode()]
                self._ask(commands.Basic.Cancel(tag)).cancel()
            raise
        return tag

    async def cancel(self, consumer_tag: str) -> None:
        """End a consumer. Until this returns messages may still be delivered; later ones go back to the queue."""
        await self.call(commands.Basic.Cancel(consumer_tag))

    async def get(self, queue: str) -> Delivery | None:
        """One message of a queue, to be acknowledged; None if there is none."""
        answer: Delivery | None = await self.call(commands.Basic.Get(queue=queue))
        return answer if isinstance(answer, Delivery) else None

    def ack(self, tag: int, multiple: bool = False) -> None:
        """Settle one delivery, or with `multiple` all up to it."""
        if self._fault is not None:
            self._check()
        self._connection.send(_ACKNOWLEDGE.pack(1, self.number, 13, _ACK, tag, multiple, 0xCE))

    def nack(self, tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Refuse one delivery, or with `multiple` all up to it; they go back to the queue or, without `requeue`, are dead."""
        if self._fault is not None:
            self._check()
        self._connection.send(_ACKNOWLEDGE.pack(1, self.number, 13, _NACK, tag, multiple | requeue << 1, 0xCE))

    # What comes. Frames lie in `data` from `start` to `end`; nothing is taken from beyond.

    def method(self, data: bytes, start: int, end: int) -> None:
        index = _INDEX.unpack_from(data, start)[0]
        if self._fault is not None:
            self._ending(data, start, end)
        elif self._content is not None:
            raise MalformedError("a method came where a message was to go on")
        elif index == _DELIVER:
            at = start + 5 + data[start + 4]
            raw = data[start + 5 : at]
            consumer = self._consumers.get(raw)
            tag, redelivered = _TAGGED.unpack_from(data, at)
            place = data[at + 9 : end]
            if place != self._place[0]:
                self._place = place, _read_place(place)
            name, deliver = (raw.decode(), self._refuse) if consumer is None else consumer[:2]
            self._content = deliver, Delivery, (name, tag, bool(redelivered), *self._place[1])
        elif index in {_ACK, _NACK}:
            if end - start != 13:
                raise MalformedError("a confirm of another length than it has")
            tag, multiple = _TAGGED.unpack_from(data, start + 4)
            self.on_confirm(tag, bool(multiple & 1), index == _ACK)
        else:
            self._rare(frame.unmarshal(data[start - 7 : end + 1])[2])

    def header(self, data: bytes, start: int, end: int) -> None:
        if self._fault is not None:
            return
        if self._content is None or self._properties is not None or end - start < 14:
            raise MalformedError("a content header came where there is none")
        size = _CONTENT.unpack_from(data, start)[2]
        self._properties = data[start + 12 : end]
        self._missing = size
        if size == 0:
            self._complete(b"")

    def body(self, data: bytes, start: int, end: int) -> None:
        if self._fault is not None:
            return
        self._missing -= end - start
        if self._properties is None or self._missing < 0:
            raise MalformedError("a body came where there is none, or a longer one than was said")
        part = data[start:end]
        if self._parts or self._missing:
            self._parts.append(part)
            if self._missing:
                return
            part = b"".join(self._parts)
            self._parts.clear()
        self._complete(part)

    def _complete(self, body: bytes) -> None:
        content, properties = self._content, self._properties
        assert content is not None
        self._content = self._properties = None
        tell, kind, fields = content
        tell(kind(*fields, properties, body))

    def _refuse(self, delivery: Delivery) -> None:
        """Nobody takes it any more."""
        self.nack(delivery.tag)

    def _rare(self, method: Any) -> None:
        if method.name == "Channel.Close":
            self._connection.send(frame.marshal(commands.Channel.CloseOk(), self.number))
            self._connection.release(self.number)
            self.end(ChannelClosed(method.reply_code, method.reply_text, method.class_id, method.method_id))
        elif method.name == "Basic.Return":
            place = method.exchange, method.routing_key
            self._content = self.on_return, Returned, (method.reply_code, method.reply_text, *place)
        elif method.name == "Basic.Cancel":
            consumer = self._consumers.pop(method.consumer_tag.encode(), None)
            if not method.nowait:
                self._connection.send(frame.marshal(commands.Basic.CancelOk(method.consumer_tag), self.number))
            if consumer is not None:
                consumer[2](consumer[0])
        elif not self._calls or method.name not in self._calls[0][0].valid_responses:
            raise MalformedError(f"{method.name} came where it answers nothing")
        else:
            answer = self._calls.popleft()[1]
            if method.name == "Basic.GetOk":
                place = method.exchange, method.routing_key
                tell = self._refuse if answer.done() else answer.set_result
                self._content = tell, Delivery, ("", method.delivery_tag, method.redelivered, *place)
                return
            if method.name == "Basic.CancelOk":
                self._consumers.pop(method.consumer_tag.encode(), None)
            if not answer.done():
                answer.set_result(method)

    def _ending(self, data: bytes, start: int, end: int) -> None:
        """After we closed, until the server has heard of it."""
        method = frame.unmarshal(data[start - 7 : end + 1])[2]
        if isinstance(method, commands.Channel.Close):  # at the same time, and it will answer ours as well
            self._connection.send(frame.marshal(commands.Channel.CloseOk(), self.number))
        elif isinstance(method, commands.Channel.CloseOk):
            self._connection.release(self.number)
            assert self._fault is not None
            self.end(self._fault)


def _read_place(data: bytes) -> tuple[str, str]:
    """Exchange and routing key."""
    middle = 1 + data[0]
    if len(data) != middle + 1 + data[middle]:
        raise MalformedError("a delivery of another length than it says")
    return data[1:middle].decode(), data[middle + 1 :].decode()
