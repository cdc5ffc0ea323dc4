"""Faults in storing and handing out."""

from __future__ import annotations

import asyncio
import re
from asyncio import Future
from collections.abc import Sequence

import msgspec
from transports.conformance.broken.registry import breaks

from oncue.core.errors import MessageTooLargeError
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport
from oncue.transports.memory.queue import MemoryQueue
from oncue.transports.memory.subscription import MemoryLease, MemorySubscription

SMALL = msgspec.structs.replace(FEATURES, max_body=1024)


def changed(send: Send, **fields: object) -> Send:
    return Send(send.queue, msgspec.structs.replace(send.message, **fields), send.delay)


@breaks("test_a_message_comes_back_byte_for_byte")
class StripsSpace(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        await super().send(*(changed(send, body=send.message.body.strip()) for send in sends))


@breaks("test_headers_come_back_as_they_were_sent")
class DropsEmptyHeaders(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        kept = [{name: value for name, value in send.message.headers.items() if value} for send in sends]
        await super().send(*(changed(send, headers=headers) for send, headers in zip(sends, kept, strict=True)))


@breaks("test_text_that_cannot_be_written_is_refused_or_kept")
class ReplacesOddText(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        await super().send(*(changed(send, id=send.message.id.encode("utf-8", "replace").decode()) for send in sends))


@breaks("test_a_body_of_the_largest_size_comes_back")
class CountsItsOwnHeaderToTheBody(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, SMALL)

    async def send(self, *sends: Send) -> None:
        for send in sends:
            if len(send.message.body) + 40 > 1024:
                raise MessageTooLargeError(send.queue, len(send.message.body), 1024)
        await super().send(*sends)


@breaks(
    "test_a_body_over_the_limit_is_refused_before_anything_is_stored",
    "test_a_batch_with_one_bad_message_stores_none_or_says_which",
)
class SendsOneByOne(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, SMALL)

    async def send(self, *sends: Send) -> None:
        for send in sends:
            await super().send(send)


@breaks("test_waiting_for_a_message_uses_no_processor_time")
class AsksInALoop(MemorySubscription):
    async def receive(self) -> MemoryLease:
        while True:
            lease = self._queue().claim(self)
            if lease is not None:
                return lease
            await asyncio.sleep(0)


@breaks("test_a_waiting_consumer_gets_a_message_when_it_is_sent")
class LooksEveryFiveSeconds(MemorySubscription):
    async def receive(self) -> MemoryLease:
        while True:
            lease = self._queue().claim(self)
            if lease is not None:
                return lease
            await asyncio.sleep(5)


@breaks("test_a_message_comes_after_a_long_silence")
class FallsDeafAfterAMinute(MemorySubscription):
    async def _wait(self, queue: MemoryQueue) -> MemoryLease:
        queue.store.loop.call_later(60, lambda: queue.hungry.pop(self, None))
        return await super()._wait(queue)


@breaks("test_queues_do_not_leak_into_each_other")
class CutsNamesAtDots(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        await super().send(*(Send(send.queue.split(".")[0], send.message, send.delay) for send in sends))


@breaks("test_consumers_of_one_queue_share_its_messages")
class HandsOutTwice(MemoryQueue):
    def add(self, message: Message, delay: float) -> None:
        super().add(message, delay)
        super().add(message, delay)


@breaks("test_a_consumer_that_comes_late_gets_what_was_sent_before")
class KeepsNothingWithoutSubscribers(MemoryQueue):
    def add(self, message: Message, delay: float) -> None:
        if self.subscriptions:
            super().add(message, delay)


@breaks("test_a_second_connection_sees_the_same_queue")
class KnowsItsOwnQueuesOnly(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.declared: set[str] = set()

    async def declare(self, spec: QueueSpec) -> None:
        self.declared.add(spec.name)
        await super().declare(spec)

    async def queues(self) -> Sequence[QueueSpec]:
        return [spec for spec in await super().queues() if spec.name in self.declared]


@breaks("test_a_batch_is_stored_whole")
class StoresTheFirst256(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        await super().send(*sends[:256])


@breaks("test_messages_sent_at_the_same_moment_are_all_stored")
class KeepsOneCallersMessagesAtATime(MemoryTransport):
    waiting: Sequence[Send] = ()

    async def send(self, *sends: Send) -> None:
        self.waiting = sends
        await asyncio.sleep(0)
        await super().send(*self.waiting)


@breaks("test_a_cancelled_send_is_whole_or_not_at_all")
class CanBeCancelledInTheMiddleOfABatch(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        for send in sends:
            await super().send(send)
            await asyncio.sleep(0)


@breaks("test_a_cancelled_send_is_whole_or_not_at_all")
class CancelsWhatOthersSend(MemoryTransport):
    sending: asyncio.Future[None] | None = None

    async def send(self, *sends: Send) -> None:
        if self.sending is not None:
            await self.sending
        self.sending = self.store.loop.create_future()
        await asyncio.sleep(0)
        await super().send(*sends)
        self.sending.set_result(None)
        self.sending = None


@breaks("test_every_allowed_name_is_a_queue_of_its_own")
class IgnoresCase(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        await super().declare(msgspec.structs.replace(spec, name=spec.name.lower()))

    async def send(self, *sends: Send) -> None:
        await super().send(*(Send(send.queue.lower(), send.message, send.delay) for send in sends))

    def queue(self, name: str) -> MemoryQueue:
        return super().queue(name.lower())


@breaks("test_a_name_that_is_not_allowed_is_refused")
class RewritesNames(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        name = re.sub(r"[^A-Za-z0-9]", "-", spec.name).lstrip("-")[:128] or "queue"
        await super().declare(msgspec.structs.replace(spec, name=name))


@breaks("test_queues_are_listed_with_their_settings")
class ForgetsSettings(MemoryTransport):
    async def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec(name=spec.name) for spec in await super().queues()]


@breaks("test_a_cancelled_receive_loses_nothing")
class LosesWhatIsOnItsWay(MemorySubscription):
    async def _wait(self, queue: MemoryQueue) -> MemoryLease:
        waiter: Future[MemoryLease] = queue.store.loop.create_future()
        self._waiters.append(waiter)
        self.update_hunger(queue)
        queue.dispatch()
        return await waiter
