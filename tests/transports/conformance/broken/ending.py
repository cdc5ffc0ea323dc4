"""Faults in flow, in closing, in trouble, and in refusing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from transports.conformance.broken.registry import breaks
from transports.conformance.sound import ServedStore

from oncue.core.message import Send
from oncue.transports.base import QueueSpec
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport
from oncue.transports.memory.queue import Entry, MemoryQueue, State
from oncue.transports.memory.subscription import MemoryLease, MemorySubscription


@breaks("test_no_more_than_prefetch_are_held_and_more_come_as_they_are_settled")
class HasNoBound(MemorySubscription):
    def __init__(self, connection: MemoryTransport, name: str, prefetch: int) -> None:
        super().__init__(connection, name, 1000)


@breaks("test_no_more_than_prefetch_are_held_and_more_come_as_they_are_settled")
class StopsWhenItIsFull(MemorySubscription):
    full = False

    def take(self, lease: MemoryLease) -> None:
        super().take(lease)
        self.full = self.full or len(self._unsettled) >= self._prefetch

    def update_hunger(self, queue: MemoryQueue) -> None:
        if not self.full:
            super().update_hunger(queue)


@breaks("test_a_message_whose_lease_ran_out_takes_up_no_room")
class KeepsRoomForWhatRanOut(MemorySubscription):
    def give(self, lease: MemoryLease) -> None:
        if self.connection.store.time() < lease.until:
            super().give(lease)


@breaks("test_resize_changes_how_many_may_be_held")
class StaysAsItIs(MemorySubscription):
    def resize(self, prefetch: int) -> None:
        super().resize(self._prefetch)


@breaks("test_room_for_less_than_one_message_is_refused")
class TakesNoRoomForOne(MemorySubscription):
    def __init__(self, connection: MemoryTransport, name: str, prefetch: int) -> None:
        super().__init__(connection, name, max(1, prefetch))


@breaks("test_random_refusals_by_many_consumers_lose_nothing_and_repeat_nothing")
class GivesUpByItself(MemoryQueue):
    def nack(self, entry: Entry, delay: float) -> None:
        if entry.claims > 3:
            self.remove(entry)
        else:
            super().nack(entry, delay)


@breaks("test_a_closed_subscription_releases_what_it_held")
class KeepsWhatItHeld(MemorySubscription):
    def leave(self) -> None:
        self._unsettled.clear()
        super().leave()


@breaks("test_a_subscription_that_ends_with_an_error_releases_what_it_held")
class LeavesOnlyWhenAllIsWell(MemoryTransport):
    @asynccontextmanager
    async def subscribe(self, queue: str, *, prefetch: int) -> AsyncIterator[MemorySubscription]:
        subscription = MemorySubscription(self, queue, prefetch)
        yield subscription
        subscription.leave()


@breaks("test_a_closed_connection_releases_what_its_subscriptions_held")
class ClosesWithoutItsSubscriptions(MemoryTransport):
    def disconnect(self) -> None:
        self._subscriptions.clear()
        super().disconnect()


@breaks("test_many_may_close_a_connection_at_the_same_time")
class ClosesOneAtATime(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.closing = asyncio.Lock()

    async def close(self) -> None:
        await self.closing.acquire()
        await super().close()


@breaks("test_many_may_close_a_connection_at_the_same_time")
class LeavesATaskBehind(MemoryTransport):
    async def close(self) -> None:
        self.left = asyncio.create_task(asyncio.sleep(60))
        await super().close()


@breaks("test_everything_is_refused_after_close")
class WorksAfterClose(MemoryTransport):
    def check_open(self) -> None:
        pass


@breaks("test_close_finishes_or_reports_what_was_asked_before")
class StoresAfterItReturned(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        self.check_open()
        self.store.loop.call_later(0.001, self.store_if_open, sends)

    def store_if_open(self, sends: Sequence[Send]) -> None:
        if not self._closed:
            self.store.put(sends)


@breaks("test_a_consumer_is_told_that_its_queue_was_deleted")
class DeletesWithoutAWord(MemoryQueue):
    def delete(self) -> None:
        self.subscriptions.clear()
        super().delete()


@breaks("test_a_consumer_goes_on_when_its_queue_is_there_again")
class StaysWithTheOldQueue(MemorySubscription):
    old: MemoryQueue | None = None

    def _queue(self) -> MemoryQueue:
        self.old = self.old or super()._queue()
        return self.old


@breaks("test_messages_outlive_a_restart")
class ForgetsDelayedMessagesInARestart(ServedStore):
    async def restart(self) -> None:
        for queue in self.queues.values():
            for entry in [each for each in queue._entries.values() if each.state is State.DELAYED]:
                queue._delayed_count -= 1
                queue.remove(entry)
        await super().restart()


@breaks("test_no_message_is_lost_when_the_store_restarts_while_messages_flow")
class CutsOffWithoutAWord(ServedStore):
    def cut_off(self, subscription: Any) -> None:
        subscription._waiters.clear()


@breaks("test_no_message_is_lost_when_the_store_restarts_while_messages_flow")
class ForgetsWhatIsInHandInARestart(ServedStore):
    async def restart(self) -> None:
        for queue in self.queues.values():
            queue.purge()
        await super().restart()


@breaks("test_a_queue_with_other_settings_is_reported_and_left_as_it_is")
class OverwritesSettings(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        if spec.name in self.store.queues:
            self.store.queues[spec.name].spec = spec
        await super().declare(spec)


@breaks("test_declaring_an_equal_queue_changes_nothing")
class BeginsAnewWithEachDeclare(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        self.store.queues.pop(spec.name, None)
        await super().declare(spec)


@breaks("test_a_queue_that_is_not_there_is_an_error")
class MakesQueuesByItself(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        for send in sends:
            await self.declare(QueueSpec(name=send.queue))
        await super().send(*sends)


@breaks("test_a_deleted_queue_is_gone_with_its_messages")
class DeletesNothing(MemoryTransport):
    async def delete(self, queue: str) -> None:
        self.check_open()


@breaks("test_times_that_are_none_are_refused")
class TakesOddTimesForTheUsual(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        usable = spec.lease if 0 < spec.lease < 1e9 else 60.0
        await super().declare(msgspec.structs.replace(spec, lease=usable))


@breaks("test_what_the_transport_says_of_itself_is_possible")
class ClaimsAnUnknownDepth(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, msgspec.structs.replace(FEATURES, depth=frozenset({"messages"})))


@breaks("test_what_the_transport_cannot_do_it_refuses")
class SaysNothingOfTheOrderItLacks(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, msgspec.structs.replace(FEATURES, fifo=False))
