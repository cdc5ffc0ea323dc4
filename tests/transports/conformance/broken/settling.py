"""Faults in acknowledging, giving back, order, and dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from transports.conformance.broken.registry import breaks

from oncue.core.errors import LeaseLostError
from oncue.core.message import Message, Send
from oncue.transports.memory import MemoryTransport
from oncue.transports.memory.queue import Entry, MemoryQueue, State
from oncue.transports.memory.subscription import MemoryLease, MemorySubscription


@breaks("test_a_message_that_nobody_settles_comes_again_when_its_lease_ends")
class KeepsLeasesForEver(MemoryQueue):
    def prolong(self, lease: MemoryLease, length: float) -> None:
        super().prolong(lease, 1e6)


@breaks("test_an_acknowledged_message_never_comes_again")
class TakesAnAckForARead(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        self._check_held()


@breaks("test_settling_twice_is_refused")
class SaysNothingOfASecondAck(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        try:
            await super().ack(*sends)
        except LeaseLostError:
            return


@breaks("test_a_late_settle_never_touches_the_new_owners_delivery")
class KnowsMessagesAndNotOwners(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        current = self.entry.lease
        if current is not None and current is not self:
            await current.ack(*sends)
        else:
            await super().ack(*sends)


@breaks("test_a_late_settle_is_refused_even_if_nobody_took_over")
class AcceptsALateAckWhileNobodyElseHasIt(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        if self.entry.lease is None and self.entry.state is State.READY:
            self.queue.remove(self.entry)
        else:
            await super().ack(*sends)


@breaks("test_a_nacked_message_comes_again_at_once")
class AlwaysWaitsBeforeTheNextAttempt(MemoryLease):
    async def nack(self, *, delay: float = 0.0) -> None:
        await super().nack(delay=delay or 5.0)


@breaks("test_a_message_nacked_with_a_delay_comes_no_sooner_than_asked")
class NacksWithoutDelay(MemoryLease):
    async def nack(self, *, delay: float = 0.0) -> None:
        await super().nack()


@breaks("test_acknowledgements_out_of_order_leave_exactly_the_others")
class AcksAllThatCameBefore(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        earlier = [each for each in self.subscription._unsettled if each.entry.order < self.entry.order]
        for each in earlier:
            await MemoryLease.ack(each)
        await super().ack(*sends)


@breaks("test_messages_of_one_key_come_one_after_the_other", "test_order_holds_with_many_consumers")
class KeepsNoOrder(MemoryQueue):
    def _offer(self, entry: Entry, *, front: bool = False) -> None:
        self._ready.append(entry)


@breaks("test_a_message_that_has_to_wait_holds_up_its_own_key_only", "test_order_holds_with_many_consumers")
class LetsOthersPassAFailure(MemoryQueue):
    def nack(self, entry: Entry, delay: float) -> None:
        if self.spec.fifo:
            lane = self._lanes[entry.message.key]
            lane.rotate(-1)
            if lane[0].state is State.READY:
                self._offer(lane[0])
        super().nack(entry, delay)


@breaks("test_what_is_sent_with_an_acknowledgement_arrives")
class ForgetsWhatGoesOutWithAnAck(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        await super().ack()


@breaks("test_an_acknowledgement_whose_send_fails_leaves_the_lease")
class AcksBeforeItSends(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        await super().ack()
        self.queue.store.check(sends, None)
        self.queue.store.put(sends)


@breaks("test_an_atomic_acknowledgement_does_all_or_nothing")
class SendsBeforeItAcks(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        for send in sends:
            self.queue.store.check([send], None)
            self.queue.store.put([send])
        await super().ack()


@breaks("test_a_cancelled_settlement_happens_or_does_not")
class CanBeCancelledBetweenTwoSteps(MemoryLease):
    async def nack(self, *, delay: float = 0.0) -> None:
        self._check_held()
        self.queue.end(self)
        await asyncio.sleep(0)
        self.queue.nack(self.entry, delay)
        self.queue.dispatch()


@breaks("test_an_interrupted_redrive_loses_none")
class CanBeCancelledBetweenAckAndSend(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        await super().ack()
        await asyncio.sleep(60)  # longer than an interrupted sweep waits for what is under way
        self.queue.store.put(sends)


@breaks("test_a_rejected_message_is_set_aside_with_its_reason")
class SendsWithoutHeadersWhenItAcks(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        bare = [msgspec.structs.replace(send.message, headers={}) for send in sends]
        await super().ack(*(Send(send.queue, message) for send, message in zip(sends, bare, strict=True)))


@breaks("test_looking_at_dead_letters_changes_nothing")
class CountsWhatWasLookedAt(MemoryTransport):
    async def peek(self, queue: str, *, limit: int) -> Sequence[Message]:
        for entry in self.queue(queue)._entries.values():
            entry.claims += 1
        return await super().peek(queue, limit=limit)


@breaks("test_attempts_are_counted_for_each_message_alone", "test_redriven_messages_start_anew_with_their_id")
class CountsAttemptsById(MemoryQueue):
    def claim(self, subscription: MemorySubscription) -> MemoryLease | None:
        lease = super().claim(subscription)
        if lease is not None:
            counts = self.__dict__.setdefault("counts", {})
            lease.attempt = counts[lease.message.id] = counts.get(lease.message.id, 0) + 1
        return lease


@breaks("test_redrive_takes_as_many_as_asked_and_those_that_match")
class CountsWhatIsGivenBackAtTheEnd(MemorySubscription):
    def leave(self) -> None:
        for lease in self._unsettled:
            lease.entry.claims += 1
        super().leave()


@breaks("test_discarded_letters_are_gone_and_no_others")
class TakesAnotherAlong(MemoryLease):
    async def ack(self, *sends: Send) -> None:
        await super().ack(*sends)
        for other in list(self.subscription._unsettled)[:1]:
            await MemoryLease.ack(other)
