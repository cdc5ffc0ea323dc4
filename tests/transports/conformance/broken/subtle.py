"""Subtler faults, in what the same cases promise besides."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from transports.conformance.broken.registry import breaks
from transports.conformance.broken.timing import FetchesAhead

from oncue.core.errors import (
    PartialSendError,
    QueueMismatchError,
    QueueNotFoundError,
    TransportClosedError,
    TransportError,
)
from oncue.core.message import Message, Send
from oncue.transports.base import QueueSpec
from oncue.transports.memory import MemoryTransport
from oncue.transports.memory.queue import SUSPECT, Entry, MemoryQueue, State
from oncue.transports.memory.subscription import MemoryLease, MemorySubscription


@breaks("test_a_message_comes_back_byte_for_byte")
class ForgetsEmptyKeys(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        messages = [msgspec.structs.replace(send.message, key=send.message.key or None) for send in sends]
        await super().send(*(Send(send.queue, each, send.delay) for send, each in zip(sends, messages, strict=True)))


@breaks("test_a_batch_with_one_bad_message_stores_none_or_says_which")
class BlamesTheFirst(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        good = [send for send in sends if send.queue in self.store.queues]
        await super().send(*good)
        if len(good) < len(sends):
            reason: TransportError = QueueNotFoundError(sends[0].queue)
            raise PartialSendError({0: reason}, len(sends))


@breaks("test_a_cancelled_receive_loses_nothing")
class CountsACancelledReceive(MemorySubscription):
    async def _wait(self, queue: MemoryQueue) -> MemoryLease:
        before = {id(lease) for lease in self._unsettled}
        try:
            return await super()._wait(queue)
        finally:
            for entry in queue._ready:
                entry.claims += entry.state is State.READY and not before


@breaks("test_a_message_that_nobody_settles_comes_again_when_its_lease_ends")
class EndsLeasesTooEarly(MemoryQueue):
    def prolong(self, lease: MemoryLease, length: float) -> None:
        super().prolong(lease, length / 4)


@breaks("test_settling_twice_is_refused", "test_a_late_settle_never_touches_the_new_owners_delivery")
class ExtendsForAnybody(MemoryLease):
    async def extend(self, seconds: float) -> None:
        self.subscription.connection.check_open()


@breaks("test_settling_twice_is_refused")
class TakesARefusalAfterAnAck(MemoryLease):
    async def nack(self, *, delay: float = 0.0) -> None:
        if self.held:
            await super().nack(delay=delay)


@breaks("test_a_nacked_message_comes_again_at_once", "test_a_message_nacked_with_a_delay_comes_no_sooner_than_asked")
class NacksUncounted(MemoryLease):
    async def nack(self, *, delay: float = 0.0) -> None:
        self._check_held()
        self.entry.claims -= 1
        await super().nack(delay=delay)


@breaks("test_a_released_message_comes_again_uncounted")
class StartsAnewAfterARelease(MemoryLease):
    async def release(self) -> None:
        self._check_held()
        self.entry.claims = 1
        await super().release()


@breaks(
    "test_a_closed_subscription_releases_what_it_held",
    "test_a_closed_connection_releases_what_its_subscriptions_held",
)
class CountsWhatACloseGivesBack(MemorySubscription):
    def leave(self) -> None:
        for lease in self._unsettled:
            lease.entry.claims += 1
        super().leave()


@breaks("test_a_message_whose_leases_ran_out_twice_is_handed_out_alone")
class HandsOutNoSuspectAtAll(MemoryQueue):
    def _offer(self, entry: Entry, *, front: bool = False) -> None:
        if entry.lapses < SUSPECT:
            super()._offer(entry, front=front)


@breaks("test_a_received_lease_has_half_its_time_left")
class CountsWhatNobodyReceived(FetchesAhead):
    async def receive(self) -> MemoryLease:
        lease = await super().receive()
        while lease.until - lease.queue.store.time() < lease.length / 2:
            await lease.nack()
            lease = await super().receive()
        return lease


@breaks("test_a_delayed_message_comes_when_it_is_due")
class DelaysByWholeSeconds(MemoryQueue):
    def add(self, message: Message, delay: float) -> None:
        super().add(message, delay and delay // 1 + 2.0)


@breaks("test_a_delay_that_is_none_is_refused")
class RefusesAnOddDelayAfterTheAck(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        await super().ack()
        self.queue.store.check(sends, None)
        self.queue.store.put(sends)


@breaks("test_purging_drops_what_is_ready_or_delayed")
class PurgesWhatIsLeasedToo(MemoryQueue):
    def purge(self) -> int:
        for lease in [lease for term in self._leases.values() for lease in term]:
            self.end(lease)
            self.remove(lease.entry)
        return super().purge()


@breaks("test_messages_that_were_kept_too_long_are_dropped")
class DropsWhatIsWorkedOn(MemoryQueue):
    def _drop_old(self, now: float) -> float:
        for entry in [each for each in self._entries.values() if each.lease is not None and each.kept_until <= now]:
            self.end(entry.lease)
            self.remove(entry)
        return super()._drop_old(now)


@breaks("test_looking_at_dead_letters_changes_nothing", "test_dead_letters_that_were_looked_at_are_still_there")
class ShowsTheNewestFirst(MemoryTransport):
    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        return [*reversed(await super().peek(queue, limit=1000))][:limit]


@breaks("test_dead_letters_that_were_looked_at_are_still_there")
class ForgetsWhatWasLookedAt(MemoryTransport):
    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        shown = await super().peek(queue, limit=limit)
        await self.purge(queue)
        return shown


@breaks("test_resize_changes_how_many_may_be_held")
class TakesBackWhatIsHeld(MemorySubscription):
    def resize(self, prefetch: int) -> None:
        super().resize(prefetch)
        for lease in list(self._unsettled)[prefetch:]:
            lease.give_back()


@breaks("test_random_refusals_by_many_consumers_lose_nothing_and_repeat_nothing")
class LosesSomeReleases(MemoryLease):
    async def release(self) -> None:
        self._check_held()
        if self.entry.order % 50:
            await super().release()
        else:
            await self.ack()


@breaks("test_many_may_close_a_connection_at_the_same_time")
class RefusesToBeClosedTwice(MemoryTransport):
    async def close(self) -> None:
        if self._closed:
            raise TransportClosedError
        await super().close()


@breaks("test_a_consumer_is_told_that_its_queue_was_deleted")
class KeepsLeasesOnADeletedQueue(MemoryQueue):
    def delete(self) -> None:
        for subscription in list(self.subscriptions):
            subscription.fail(QueueNotFoundError(self.spec.name))


@breaks("test_a_queue_with_other_settings_is_reported_and_left_as_it_is")
class ComparesLeasesOnly(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        have = self.store.queues.get(spec.name)
        if have is None or have.spec.lease != spec.lease:
            await super().declare(spec)


@breaks("test_a_queue_with_other_settings_is_reported_and_left_as_it_is")
class SaysNotWhatDiffers(MemoryTransport):
    async def declare(self, spec: QueueSpec) -> None:
        try:
            await super().declare(spec)
        except QueueMismatchError as error:
            raise QueueMismatchError(spec.name, dict.fromkeys(error.differences, ("?", "?"))) from None


@breaks("test_a_queue_that_is_not_there_is_an_error")
class PurgesWhatIsNotThere(MemoryTransport):
    async def purge(self, queue: str) -> int:
        return await super().purge(queue) if queue in self.store.queues else 0


@breaks("test_a_deleted_queue_is_gone_with_its_messages")
class RemembersMessagesOfDeletedQueues(MemoryTransport):
    async def delete(self, queue: str) -> None:
        deleted = self.store.queues.get(queue)
        await super().delete(queue)
        if deleted is not None:
            self.store.__dict__.setdefault("deleted", {})[queue] = deleted

    async def declare(self, spec: QueueSpec) -> None:
        await super().declare(spec)
        deleted = self.store.__dict__.get("deleted", {}).pop(spec.name, None)
        for message in deleted.oldest(100) if deleted is not None else ():
            self.store.queues[spec.name].add(message, 0.0)
