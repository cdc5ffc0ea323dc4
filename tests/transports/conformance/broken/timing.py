"""Faults in leases, delays, ages, counts and depth."""

from __future__ import annotations

import asyncio
import math
from asyncio import TimerHandle
from collections import deque

import msgspec
from transports.conformance.broken.registry import breaks

from oncue.core.errors import InvalidValueError
from oncue.core.message import Message, Send
from oncue.transports.base import Depth
from oncue.transports.memory import FEATURES, MemoryStore, MemoryTransport
from oncue.transports.memory.queue import Entry, MemoryQueue, State
from oncue.transports.memory.subscription import MemoryLease, MemorySubscription


@breaks("test_a_lease_that_is_extended_in_time_stays_held")
class ExtendsNothing(MemoryLease):
    async def extend(self, seconds: float) -> None:
        self._check_held()


@breaks("test_a_lease_ends_once_it_is_no_longer_extended")
class ExtendsForEver(MemoryLease):
    async def extend(self, seconds: float) -> None:
        await super().extend(1e6)


@breaks("test_a_lease_may_be_extended_by_more_than_the_queues_own")
class ExtendsByTheQueuesOwnLength(MemoryLease):
    async def extend(self, seconds: float) -> None:
        await super().extend(self.queue.spec.lease)


@breaks("test_extensions_do_not_add_up")
class AddsExtensionsUp(MemoryLease):
    async def extend(self, seconds: float) -> None:
        await super().extend(self.until - self.queue.store.time() + seconds)


@breaks("test_an_extension_that_fails_leaves_the_lease_as_it_was")
class GivesUpWhenAnExtensionFails(MemoryLease):
    async def extend(self, seconds: float) -> None:
        try:
            await super().extend(seconds)
        except InvalidValueError:
            if self.held:
                self.give_back()
            raise


@breaks("test_an_extension_may_be_cancelled")
class LosesTheLeaseInACancelledExtension(MemoryLease):
    async def extend(self, seconds: float) -> None:
        self._check_held()
        self.entry.lease = None
        await asyncio.sleep(0)
        self.entry.lease = self
        await super().extend(seconds)


@breaks("test_a_lease_over_the_cap_is_refused")
class AcceptsMoreThanItsCap(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, msgspec.structs.replace(FEATURES, lease_cap=900.0))


class FetchesAhead(MemorySubscription):
    def __init__(self, connection: MemoryTransport, name: str, prefetch: int) -> None:
        super().__init__(connection, name, prefetch)
        self.ahead: deque[MemoryLease] = deque()

    async def receive(self) -> MemoryLease:
        while len(self._unsettled) < self._prefetch:
            lease = self._queue().claim(self)
            if lease is None:
                break
            self.ahead.append(lease)
        return self.ahead.popleft() if self.ahead else await super().receive()


@breaks("test_a_received_lease_has_half_its_time_left")
class HandsOutWhatIsNearlyOver(FetchesAhead):
    pass


@breaks("test_what_does_not_fit_after_a_resize_goes_to_others")
class KeepsWhatItFetchedAhead(FetchesAhead):
    pass


@breaks("test_a_subscription_keeps_no_more_from_others_than_prefetch")
class FetchesAheadWithoutBound(FetchesAhead):
    def __init__(self, connection: MemoryTransport, name: str, prefetch: int) -> None:
        super().__init__(connection, name, 10 * prefetch)


@breaks("test_a_delayed_message_comes_when_it_is_due")
class DelaysNothing(MemoryQueue):
    def add(self, message: Message, delay: float) -> None:
        super().add(message, 0.0)


@breaks("test_a_delayed_message_outlives_its_senders_connection")
class DelaysInTheSender(MemoryTransport):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.timers: list[TimerHandle] = []

    async def send(self, *sends: Send) -> None:
        for send in sends:
            later = Send(send.queue, send.message)
            self.timers.append(self.store.loop.call_later(send.delay, self.store.put, [later]))

    async def close(self) -> None:
        for timer in self.timers:
            timer.cancel()
        await super().close()


class DelaysWhileSomebodyListens(MemoryQueue):
    parked: tuple[tuple[Message, float], ...] = ()

    def add(self, message: Message, delay: float) -> None:
        if delay and not self.subscriptions:
            self.parked += ((message, delay),)
        else:
            super().add(message, delay)


class Listener(MemorySubscription):
    def __init__(self, connection: MemoryTransport, name: str, prefetch: int) -> None:
        super().__init__(connection, name, prefetch)
        queue = connection.queue(name)
        assert isinstance(queue, DelaysWhileSomebodyListens)
        parked, queue.parked = queue.parked, ()
        for message, delay in parked:
            queue.add(message, delay)


class ListenersStore(MemoryStore):
    queue_type = DelaysWhileSomebodyListens


@breaks("test_a_delayed_message_needs_no_consumer_to_come_due")
class CountsDownWhileSomebodyListens(MemoryTransport):
    store_type = ListenersStore
    subscription_type = Listener


@breaks(
    "test_delayed_messages_come_in_the_order_in_which_they_are_due",
    "test_many_delayed_messages_hold_up_none_that_is_ready",
)
class WaitsForTheHeadOfTheLine(MemoryQueue):
    last = 0.0

    def add(self, message: Message, delay: float) -> None:
        self.last = max(self.last, self.store.time() + delay)
        super().add(message, self.last - self.store.time())


@breaks("test_long_delays_are_not_cut_short")
class CountsMillisecondsIn31Bits(MemoryQueue):
    def add(self, message: Message, delay: float) -> None:
        super().add(message, 0.0 if delay * 1000 > 2**31 else delay)


@breaks("test_a_delay_that_is_none_is_refused")
class TakesOddDelaysForNone(MemoryTransport):
    async def send(self, *sends: Send) -> None:
        usable = [0 <= send.delay < math.inf for send in sends]
        await super().send(
            *(Send(each.queue, each.message, each.delay * use) for each, use in zip(sends, usable, strict=True) if use)
        )


@breaks("test_purging_drops_what_is_ready_or_delayed")
class PurgesWhatIsReadyOnly(MemoryQueue):
    def purge(self) -> int:
        ready = [entry for entry in self._entries.values() if entry.state is State.READY]
        for entry in ready:
            self.remove(entry)
        return len(ready)


@breaks("test_messages_that_were_kept_too_long_are_dropped")
class KeepsEverything(MemoryQueue):
    def _drop_old(self, now: float) -> float:
        return math.inf


@breaks("test_what_is_delayed_for_longer_than_it_is_kept_comes_all_the_same")
class CountsAgeFromSending(MemoryQueue):
    def add(self, message: Message, delay: float) -> None:
        super().add(message, delay)
        if self.spec.retention is not None:
            next(reversed(self._entries.values())).kept_until -= delay


@breaks("test_a_lease_that_runs_out_counts_as_an_attempt")
class CountsNothingThatRanOut(MemoryQueue):
    def _end_leases(self, now: float) -> None:
        over = [lease for term in self._leases.values() for lease in term if lease.until <= now]
        super()._end_leases(now)
        for lease in over:
            lease.entry.claims -= 1


@breaks("test_a_released_message_comes_again_uncounted")
class CountsWhatIsReleased(MemoryLease):
    async def release(self) -> None:
        await self.nack()


@breaks("test_a_released_message_comes_again_at_once")
class ReleasesWhenTheLeaseEnds(MemoryLease):
    async def release(self) -> None:
        self._check_held()


@breaks("test_a_message_whose_leases_ran_out_twice_is_handed_out_alone")
class SuspectsNobody(MemoryQueue):
    def claim(self, subscription: MemorySubscription) -> MemoryLease | None:
        suspects, subscription.suspects = subscription.suspects, 0
        lease = super().claim(subscription)
        subscription.suspects += suspects
        return lease


@breaks("test_a_message_that_failed_often_is_no_suspect")
class SuspectsWhatFailed(MemoryQueue):
    def nack(self, entry: Entry, delay: float) -> None:
        entry.lapses += 1
        super().nack(entry, delay)


@breaks("test_delayed_messages_are_counted_apart")
class CountsDelayedAsReady(MemoryQueue):
    def depth(self) -> Depth:
        depth = super().depth()
        return Depth((depth.ready or 0) + (depth.delayed or 0), depth.leased, 0)


@breaks("test_depth_follows_messages_from_sending_to_acknowledgement")
class CountsNothingInHand(MemoryQueue):
    def depth(self) -> Depth:
        return Depth(super().depth().ready, 0, super().depth().delayed)


@breaks("test_depth_shows_what_a_dead_consumer_held_as_ready")
class CountsWhatRanOutAsInHand(MemoryQueue):
    def depth(self) -> Depth:
        dead = sum(entry.lapses > 0 and entry.state is State.READY for entry in self._entries.values())
        depth = super().depth()
        return Depth((depth.ready or 0) - dead, (depth.leased or 0) + dead, depth.delayed)


@breaks("test_depth_counts_new_arrivals_behind_old_work_in_hand")
class LosesCountBehindOldWork(MemoryQueue):
    newest = 0

    def remove(self, entry: Entry) -> None:
        self.newest = max(self.newest, entry.order)
        super().remove(entry)

    def depth(self) -> Depth:
        depth = super().depth()
        old = any(e.state is State.LEASED and e.order < self.newest for e in self._entries.values())
        return Depth(0, depth.leased, depth.delayed) if old else depth


@breaks("test_depth_counts_what_waits_for_its_turn_in_a_fifo_queue")
class CountsWhatIsOnOfferOnly(MemoryQueue):
    def depth(self) -> Depth:
        depth = super().depth()
        return Depth(sum(entry.state is State.READY for entry in self._ready), depth.leased, depth.delayed)


@breaks("test_the_depth_of_a_queue_that_is_not_there_is_an_error")
class TakesNoQueueForAnEmptyOne(MemoryTransport):
    async def depth(self, queue: str) -> Depth:
        return await super().depth(queue) if queue in self.store.queues else Depth(0, 0, 0)
