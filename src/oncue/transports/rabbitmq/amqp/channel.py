"""What is done over a connection: calls with an answer, publishing with confirms, and consuming with acknowledgements."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
from pamqp import commands, frame
from pamqp.base import Frame

from oncue.transports.rabbitmq.amqp.faults import CLOSED, ChannelClosed, ClosedError, MalformedError
from oncue.transports.rabbitmq.amqp.properties import short_text

if TYPE_CHECKING:
    from oncue.transports.rabbitmq.amqp.connection import Connection

METHOD, HEADER, BODY, END = 1, 2, 3, 0xCE
_PUBLISH, _DELIVER, _ACK, _NACK = 0x003C0028, 0x003C003C, 0x003C0050, 0x003C0078
_BASIC = 60
_INDEX = struct.Struct(">I")
_METHOD_FRAME = struct.Struct(">BHII")
_HEADER_FRAME = struct.Struct(">BHIHHQ")
_BODY_FRAME = struct.Struct(">BBHI")  # with the end of the frame before it
_ACK_FRAME = struct.Struct(">BHIIQBB")
_CONTENT = struct.Struct(">HHQ")
_TAGGED = struct.Struct(">QB")


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
    """A message that was published to where no queue takes it."""

    code: int
    text: str
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes


@lru_cache(1000)
def _publish_frame(number: int, exchange: str, routing_key: str) -> bytes:
    """What begins a message; there are few places to publish to."""
    where = b"\0\0%b%b\1" % (short_text(exchange), short_text(routing_key))  # the last byte makes it mandatory
    return _METHOD_FRAME.pack(METHOD, number, 4 + len(where), _PUBLISH) + where + b"\xce"


class Channel:
    """One of the streams of a connection, made by `Connection.channel`.

    Callbacks are called in the event loop, in the order of what comes, and must not raise: that ends the connection. What is
    written goes out once per turn of the loop. After the end, everything raises `ChannelClosed` or `ConnectionClosed`.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self.closed: asyncio.Future[ChannelClosed] = asyncio.get_running_loop().create_future()
        self.on_confirm: Callable[[int, bool, bool], object] = lambda _tag, _multiple, _acknowledged: None
        self.on_return: Callable[[Returned], object] = lambda _returned: None
        self._connection = connection
        self._largest = connection.frame_max - 8
        self._fault: ClosedError | None = None
        self._calls: deque[tuple[bytes, Sequence[str], asyncio.Future[Any]]] = deque()  # the first has been given
        self._published = 0
        self._consumers: dict[bytes, tuple[str, Callable[[Delivery], object], Callable[[str], object]]] = {}
        self._tags = count(1)
        self._place, self._exchange, self._routing_key = b"", "", ""  # of the last delivery; most are from the same
        # What comes in parts: to whom it goes and what it is, and what there is of it.
        self._content: tuple[Callable[[Any], object], Callable[..., Any], tuple[Any, ...]] | None = None
        self._properties: bytes | None = None
        self._parts: list[bytes] = []
        self._missing = 0

    async def call(self, request: Frame) -> Any:
        """Give a method and return its answer. Calls are made one after the other: answers may overtake each other otherwise.

        One that is cancelled is not made if it had to wait for others, and else its answer is dropped.
        """
        return await self._ask(request)

    def _ask(self, request: Frame) -> asyncio.Future[Any]:
        self._check()
        answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # there may be nobody to take it
        self._calls.append((frame.marshal(request, self.number), request.valid_responses, answer))
        if len(self._calls) == 1:
            self._connection.send(self._calls[0][0])
        return answer

    def _answered(self) -> asyncio.Future[Any]:
        """Whose answer has come; the next call is made."""
        _, _, answer = self._calls.popleft()
        while self._calls and self._calls[0][2].done():
            self._calls.popleft()
        if self._calls:
            self._connection.send(self._calls[0][0])
        return answer

    def _send(self, method: Frame) -> None:
        self._connection.send(frame.marshal(method, self.number))

    async def close(self) -> None:
        """Close, and return when the server has said so; cancelling does not stop it. May be repeated."""
        self.leave()
        await asyncio.wait([self.closed])

    def leave(self) -> None:
        """Close without waiting."""
        if self._fault is None:
            self._send(commands.Channel.Close(CLOSED, "", 0, 0))
            self.stop(ChannelClosed(CLOSED, "the channel was closed by this side"))

    def stop(self, fault: ClosedError) -> None:
        """Take no more calls, and hear of nothing but the end."""
        if self._fault is None:
            self._fault = fault
            for _, _, answer in self._calls:
                if not answer.done():
                    answer.set_exception(fault.again())

    def end(self, fault: ClosedError) -> None:
        """It is over."""
        self.stop(fault)
        if not self.closed.done():
            self.closed.set_result(ChannelClosed(*fault.args))

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault.again()

    # Publishing

    async def confirm(self) -> None:
        """Have all messages confirmed; comes before the first."""
        await self.call(commands.Confirm.Select())

    def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> int:
        """Send a message, to be returned where no queue takes it; its number, from 1 on, by which `on_confirm` names it.

        Never waits: `Connection.writable` does. Raises `MalformedError` for what cannot be sent, such as a long name.
        """
        self._check()
        method = _publish_frame(self.number, exchange, routing_key)
        size, largest, described = len(body), self._largest, len(properties) + 12
        if described > largest:
            raise MalformedError(f"properties of {len(properties)} bytes are over the limit of {largest - 12} bytes")
        header = _HEADER_FRAME.pack(HEADER, self.number, described, _BASIC, 0, size)
        connection = self._connection
        if 0 < size <= largest:
            connection.send(method, header, properties, _BODY_FRAME.pack(END, BODY, self.number, size), body, b"\xce")
        else:
            parts = [body[start : start + largest] for start in range(0, size, largest)]
            frames = [frame for part in parts for frame in (_BODY_FRAME.pack(END, BODY, self.number, len(part)), part)]
            connection.send(method, header, properties, *frames, b"\xce")
        connection.queued += size + described
        self._published += 1
        return self._published

    # Consuming

    async def consume(
        self,
        queue: str,
        deliver: Callable[[Delivery], object],
        cancelled: Callable[[str], object],
        *,
        prefetch: int,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Have up to `prefetch` messages of a queue at a time given to `deliver`; the consumer's tag.

        `cancelled` gets the tag when the server ends it, as when the queue is deleted. After this call was cancelled nothing is
        delivered, and what was on its way goes back to the queue.
        """
        tag = str(next(self._tags))
        consume = commands.Basic.Consume(queue=queue, consumer_tag=tag, arguments=dict(arguments or {}))
        self._consumers[tag.encode()] = tag, deliver, cancelled
        try:
            await asyncio.gather(self._ask(commands.Basic.Qos(prefetch_count=prefetch)), self._ask(consume))
        except asyncio.CancelledError:
            if self._fault is None:
                kept: list[Delivery] = []  # going back before the consumer has ended, they would be delivered again
                self._consumers[tag.encode()] = tag, kept.append, lambda _tag: None
                self._ask(commands.Basic.Cancel(consumer_tag=tag)).add_done_callback(partial(self._give_back, kept))
            raise
        return tag

    async def cancel(self, consumer_tag: str) -> None:
        """End a consumer, also if cancelled. Until this returns messages may be delivered; later ones go back to the queue."""
        answer = self._ask(commands.Basic.Cancel(consumer_tag=consumer_tag))
        await asyncio.wait([answer])
        answer.result()

    async def get(self, queue: str) -> Delivery | None:
        """One message of a queue, which is to be acknowledged, or None; if cancelled, it goes back to the queue."""
        answer = await self.call(commands.Basic.Get(queue=queue))
        return answer if isinstance(answer, Delivery) else None

    def ack(self, tag: int, multiple: bool = False) -> None:
        """Settle a delivery, or with `multiple` all up to it."""
        self._check()
        self._connection.send(_ACK_FRAME.pack(METHOD, self.number, 13, _ACK, tag, multiple, END))

    def nack(self, tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Refuse a delivery, or with `multiple` all up to it; back to the queue or, without `requeue`, to where the dead go."""
        self._check()
        self._connection.send(_ACK_FRAME.pack(METHOD, self.number, 13, _NACK, tag, multiple | requeue << 1, END))

    # What comes

    def take(self, kind: int, data: bytes, start: int, end: int) -> int:
        """Take the frame whose payload is in `data` from `start` to `end`; where the next one begins."""
        if self._fault is not None:
            if kind == METHOD:
                self._method(frame.unmarshal(data[start - 7 : end + 1])[2])
        elif kind == METHOD and self._content is None:
            index = _INDEX.unpack_from(data, start)[0]
            if index == _DELIVER:
                return self._deliver(data, start, end)
            if index in {_ACK, _NACK} and end - start == 13:
                tag, multiple = _TAGGED.unpack_from(data, start + 4)
                self.on_confirm(tag, multiple & 1 == 1, index == _ACK)
            else:
                self._method(frame.unmarshal(data[start - 7 : end + 1])[2])
        elif kind == HEADER and self._content is not None and self._properties is None and end - start >= 14:
            self._missing = _CONTENT.unpack_from(data, start)[2]
            self._properties = data[start + 12 : end]
            self._progress()
        elif kind == BODY and self._properties is not None and end - start <= self._missing:
            self._missing -= end - start
            self._parts.append(data[start:end])
            self._progress()
        else:
            raise MalformedError(f"a frame of kind {kind} came out of turn")
        return end + 1

    def _deliver(self, data: bytes, start: int, end: int) -> int:
        last: int
        at = start + 5 + data[start + 4]
        raw = data[start + 5 : at]
        consumer = self._consumers.get(raw)
        name, deliver = (raw.decode(), self._refuse) if consumer is None else consumer[:2]
        tag, redelivered = _TAGGED.unpack_from(data, at)
        place = data[at + 9 : end]
        if place != self._place:
            middle = 1 + place[0]
            if len(place) != middle + 1 + place[middle]:
                raise MalformedError("a delivery of another length than it says")
            self._exchange, self._routing_key = place[1:middle].decode(), place[middle + 1 :].decode()
            self._place = place
        fields = name, tag, redelivered == 1, self._exchange, self._routing_key
        # Mostly the rest has come as well, in one piece; what is not as expected is left to the slower way.
        head = end + 1
        if head + 32 < len(data):
            kind, number, size, _, _, missing = _HEADER_FRAME.unpack_from(data, head)
            body = head + 15 + size
            last = body + missing
            whole = kind == HEADER and number == self.number and size >= 14 and last < len(data) and data[last] == END
            if whole and _BODY_FRAME.unpack_from(data, body - 8) == (END, BODY, number, missing):
                deliver(Delivery(*fields, data[head + 19 : body - 8], data[body:last]))
                return last + 1
        self._content = deliver, Delivery, fields
        return head

    def _progress(self) -> None:
        """Hand over what is being received, if that was all of it."""
        if self._missing == 0 and self._content is not None:
            (tell, kind, fields), properties = self._content, self._properties
            body = b"".join(self._parts)
            self._content = self._properties = None
            self._parts.clear()
            tell(kind(*fields, properties, body))

    def _refuse(self, delivery: Delivery) -> None:
        """Nobody takes it any more."""
        if self._fault is None:
            self.nack(delivery.tag)

    def _give_back(self, deliveries: list[Delivery], ended: asyncio.Future[Any]) -> None:
        if ended.exception() is None:
            for delivery in deliveries:
                self._refuse(delivery)

    def _got(self, delivery: Delivery) -> None:
        answer = self._answered()
        self._refuse(delivery) if answer.done() else answer.set_result(delivery)

    def _method(self, method: Any) -> None:
        match method.name:
            case "Channel.Close":  # also after we have closed: then it will answer that, too
                self._send(commands.Channel.CloseOk())
                if self._fault is None:
                    self._connection.channels.pop(self.number, None)
                self.end(ChannelClosed(method.reply_code, method.reply_text, method.class_id, method.method_id))
            case "Channel.CloseOk" if self._fault is not None:
                self._connection.channels.pop(self.number, None)
                self.end(self._fault)
            case _ if self._fault is not None:
                pass
            case "Basic.Return":
                place = method.exchange, method.routing_key
                self._content = self.on_return, Returned, (method.reply_code, method.reply_text, *place)
            case "Basic.Cancel":
                if not method.nowait:
                    self._send(commands.Basic.CancelOk(method.consumer_tag))
                consumer = self._consumers.pop(method.consumer_tag.encode(), None)
                if consumer is not None:
                    consumer[2](consumer[0])
            case name if not self._calls or name not in self._calls[0][1]:
                raise MalformedError(f"{name} came where it answers nothing")
            case "Basic.GetOk":
                place = method.exchange, method.routing_key
                self._content = self._got, Delivery, ("", method.delivery_tag, method.redelivered, *place)
            case name:
                answer = self._answered()
                if name == "Basic.CancelOk":
                    self._consumers.pop(method.consumer_tag.encode(), None)
                if not answer.done():
                    answer.set_result(method)
