"""This process's part in the consumer group of one queue, shared by all its subscriptions here.

Before a message is handed out, it is committed that it was taken; only then may somebody have it. So whoever gets a partition next
knows what may have been begun there, and counts it. One task commits for all: what was taken, settled and given back in the same
moment goes out together.
"""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as theirs

from oncue.core.errors import ConnectionLostError, LeaseLostError, QueueNotFoundError, TransportError
from oncue.transports.kafka import private
from oncue.transports.kafka.assignor import Claim, Told, make_assignor
from oncue.transports.kafka.faults import FINAL, TROUBLE, fault
from oncue.transports.kafka.group import Listener
from oncue.transports.kafka.lease import KafkaLease
from oncue.transports.kafka.ledger import MOST, Entry, Ledger, Stage
from oncue.transports.kafka.line import Line
from oncue.transports.kafka.log import Log
from oncue.transports.kafka.registry import Record
from oncue.transports.kafka.waiters import Waiters

if TYPE_CHECKING:
    from oncue.transports.kafka.desk import Desk
    from oncue.transports.kafka.subscription import KafkaSubscription

_log = logging.getLogger("oncue.transports.kafka")

_AHEAD = 1000
"""Messages of one partition that are read before anybody has room for them."""
_AT_A_TIME = 2000
_PAUSE = 0.05
_IDLE = 60_000
_LOOK_AGAIN = 200


class Member:
    """Made by `start`; ends with its last subscription, or when its queue is gone."""

    def __init__(self, desk: Desk, record: Record, partitions: int) -> None:
        self.desk = desk
        self.record = record
        self.loop = asyncio.get_running_loop()
        self.topic = record.topic
        self.group = desk.group(record.spec.name)
        self.subscriptions: dict[KafkaSubscription, None] = {}
        self.ledgers: dict[int, Ledger] = {}
        self.line = Line(self.loop, fifo=record.spec.fifo, ready=self.poke)
        self.paused = True
        self.silent = False  # between two generations of the group nothing can be committed
        self.committing = asyncio.Lock()
        self.over: Sequence[int] = ()
        self._generation = -1  # of the group, when it got its partitions
        self.ending = False
        self.ended = False
        self.joined = asyncio.Event()
        self.stopped = asyncio.Event()
        self._ready: deque[Entry] = deque()
        self._waiters = Waiters(desk.address.timeout, desk.address.shown)
        self._dirty: set[Ledger] = set()
        self._work = asyncio.Event()
        self._hungry = asyncio.Event()
        self._lapse: TimerHandle | None = None
        self._log = Log(desk, record)
        self._refused = False  # the servers do not let it be a member
        self._failing: Future[None] | None = None
        address = desk.address
        self.consumer: AIOKafkaConsumer = desk.cluster.reader(
            group_id=self.group,
            partition_assignment_strategy=[make_assignor(partitions, self._claim, self._told)],
            session_timeout_ms=round(address.session * 1000),
            heartbeat_interval_ms=address.heartbeat,
            max_poll_interval_ms=2**31 - 1,
            rebalance_timeout_ms=30_000 + round(address.drain * 1000),
            fetch_max_wait_ms=address.longest_poll,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        try:
            await private.start(self.consumer, self.desk.address.timeout)
            self.consumer.subscribe([self.topic], listener=Listener(self))
        except TROUBLE as error:
            self.ended = True
            self.stopped.set()
            await private.stop(self.consumer, self.desk.address.timeout)
            raise fault(error, self.desk.address.shown) from error
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._commit())]
        for task in self._tasks:
            task.add_done_callback(self._on_end)

    # For subscriptions

    def claim(self, subscription: KafkaSubscription) -> KafkaLease | None:
        """The next message that was taken, now held by this subscription."""
        if self.paused:
            return None
        for place, entry in enumerate(self._ready):
            if entry.suspect and subscription.suspects:
                continue
            del self._ready[place]
            until = self.loop.time() + self.record.spec.lease
            lease = KafkaLease(self, subscription, entry, until)
            entry.stage = Stage.HELD
            entry.lease = lease
            subscription.held[lease] = None
            subscription.suspects += lease.suspect
            self.watch(until)
            return lease
        return None

    def poke(self) -> None:
        """There may be something to take or to commit."""
        self._work.set()

    def offer(self) -> None:
        """Have those who wait look, each in turn."""
        left = len(self._ready)
        asked = True
        while left and asked:
            asked = False
            for subscription in list(self.subscriptions):
                if left and subscription.room and subscription.wake():
                    asked = True
                    left -= 1

    def trim(self) -> None:
        """Give back what was taken and is too much by now."""
        room = 0 if self.ending or self.paused else sum(each.room for each in self.subscriptions)
        while len(self._ready) > room:
            self._untake(self._ready.pop())

    async def part(self, subscription: KafkaSubscription) -> None:
        """The subscription is over: what it holds is released."""
        until = self.loop.time() + self.desk.address.timeout
        while any(lease.entry.stage is Stage.SETTLING for lease in subscription.held) and self.loop.time() < until:  # noqa: ASYNC110  # it is over soon
            await asyncio.sleep(_PAUSE / 5)
        now = self.loop.time()
        for lease in reversed(list(subscription.held)):
            entry = lease.entry
            if lease.until > now:
                entry.attempts -= 1
            else:
                entry.lost += 1
            self._drop(lease)
            self._put_back(entry, front=True)
        self.subscriptions.pop(subscription, None)
        if self.subscriptions or self.ending:
            self.trim()
            self.poke()
            return
        await self.end()

    async def end(self, error: TransportError | None = None) -> None:
        """Leave the group, and give up what is held; without an error only once that is written down."""
        if not self.ending:
            self.ending = True
            self.trim()
            try:
                if error is None and not self._refused:
                    await self._say_goodbye()
                await private.end(*self._tasks)
            finally:
                await self._over()
        await self.stopped.wait()

    async def _say_goodbye(self) -> None:
        """Commit what is known, but for one that is not there wait no longer than an answer may take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.desk.address.timeout):
                await self.joined.wait()
                self.untake_all()
                await self.flush(self.desk.address.timeout)
                await self._log.trim(self.ledgers.values(), now=True)

    async def _over(self) -> None:
        self.line.close()
        if self._lapse is not None:
            self._lapse.cancel()
        for ledger in self.ledgers.values():
            self.abandon(ledger)
        self._waiters.close()
        self.ended = True
        try:
            await private.stop(self.consumer, self.desk.address.timeout)
        finally:
            self.stopped.set()

    def fail(self, error: BaseException) -> None:
        """It cannot go on: whoever waits is told, and joins anew when it asks again."""
        if self.ending:
            return
        if not isinstance(error, TROUBLE):
            _log.error("receiving from queue %r begins anew after a fault", self.record.spec.name, exc_info=error)
        found = fault(error, self.desk.address.shown)
        for subscription in list(self.subscriptions):
            subscription.fail(found)
        self._failing = asyncio.ensure_future(self.end(found))

    def lose_queue(self) -> None:
        """It was deleted: whoever waits is told, and whoever holds something has lost it."""
        self.ended = True
        for ledger in self.ledgers.values():
            self.abandon(ledger)
        for subscription in list(self.subscriptions):
            subscription.lose_queue()

    # For leases

    async def finish(self, lease: KafkaLease) -> None:
        entry = lease.entry
        self._drop(lease)
        entry.ledger.finish(entry)
        self.line.finished(entry)
        try:
            await self._committed(entry.ledger)
        except ConnectionLostError:
            self._take_back(lease)
            raise

    async def give_back(self, lease: KafkaLease, *, front: bool) -> None:
        self._drop(lease)
        self._put_back(lease.entry, front=front)
        await self._committed(lease.entry.ledger)

    def watch(self, until: float) -> None:
        """A lease may run out then."""
        if self._lapse is None or until < self._lapse.when():
            if self._lapse is not None:
                self._lapse.cancel()
            self._lapse = self.loop.call_at(until, self._on_lapse)

    # For the group

    def untake_all(self) -> None:
        while self._ready:
            self._untake(self._ready.pop())

    @property
    def held(self) -> int:
        return sum(len(each.held) for each in self.subscriptions)

    def abandon(self, ledger: Ledger) -> None:
        """It is somebody else's: whoever holds something of it has lost it."""
        ledger.gone = True
        self._dirty.discard(ledger)
        self.line.forget(ledger)
        for entry in ledger.undone.values():
            if entry.lease is not None:
                self._drop(entry.lease)
            entry.stage = Stage.OVER
        self._ready = deque(entry for entry in self._ready if entry.ledger is not ledger)
        self._waiters.lose(ledger, self._gone)

    def dirty(self, ledger: Ledger) -> None:
        self._dirty.add(ledger)
        self._work.set()

    def go_on(self) -> None:
        self.paused = self.silent = self._refused = False
        self.joined.set()
        self._hungry.set()
        self.purge()
        self._work.set()

    def purge(self) -> None:
        """Drop what is below the floors that somebody set."""
        self.record = self.desk.registry.records.get(self.record.spec.name, self.record)
        for partition, floor in self.record.floors.items():
            ledger = self.ledgers.get(partition)
            if ledger is None or ledger.floor >= floor:
                continue
            ledger.floor = floor
            ledger.skip(floor)
            for entry in list(ledger.undone.values()):
                if entry.offset < floor and entry.stage is Stage.WAITING and not entry.lent:
                    ledger.finish(entry)
                    self.line.finished(entry)
            self.dirty(ledger)

    async def flush(self, within: float) -> None:
        """Have what is known now committed, if that can be."""
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(within):
                await asyncio.gather(*(self._committed(each) for each in list(self._dirty)))

    def _claim(self) -> Claim:
        busy = [each.partition for each in self.ledgers.values() if each.held]
        return Claim(list(self.ledgers), busy, self._generation)

    def _told(self, told: Told) -> None:
        self.over, self._generation = told.over, private.generation(self.consumer)

    # Inside

    def _drop(self, lease: KafkaLease) -> None:
        lease.entry.lease = None
        subscription = lease.subscription
        if lease in subscription.held:
            del subscription.held[lease]
            subscription.suspects -= lease.suspect
            self.poke()

    def _put_back(self, entry: Entry, *, front: bool) -> None:
        entry.stage = Stage.WAITING
        self.line.put(entry, front=front)
        self.dirty(entry.ledger)

    def _take_back(self, lease: KafkaLease) -> None:
        """Nobody knows whether it is committed as done, so it is held as before. Meanwhile nothing else was handed out for it:
        that would have been committed together with it."""
        entry, subscription = lease.entry, lease.subscription
        if entry.ledger.gone:
            return
        entry.ledger.resume(entry)
        self.line.resume(entry)
        if subscription.left:
            self._put_back(entry, front=True)
            return
        entry.stage, entry.lease = Stage.HELD, lease
        subscription.held[lease] = None
        subscription.suspects += lease.suspect
        self.dirty(entry.ledger)
        self.trim()
        self.watch(lease.until)

    def _untake(self, entry: Entry) -> None:
        entry.attempts -= 1
        self._put_back(entry, front=True)

    def _on_lapse(self) -> None:
        self._lapse = None
        now = self.loop.time()
        leases = [lease for each in self.subscriptions for lease in each.held]
        held = [lease for lease in leases if lease.entry.stage is Stage.HELD]
        for lease in reversed(held):
            if lease.until <= now:
                lease.entry.lost += 1
                self._drop(lease)
                self._put_back(lease.entry, front=True)
        later = min((lease.until for lease in held if lease.until > now), default=math.inf)
        if later < math.inf:
            self.watch(later)

    def _gone(self) -> TransportError:
        if self.ended:
            return QueueNotFoundError(self.record.spec.name)
        return LeaseLostError(self.record.spec.name, "?")

    async def _committed(self, ledger: Ledger) -> None:
        """Return when what is known of it now is committed."""
        if ledger.gone:
            raise self._gone()
        future = self._waiters.add(ledger)
        self.dirty(ledger)
        await future

    async def _read(self) -> None:
        while True:
            ledgers = self.ledgers.values()
            full = [each for each in ledgers if len(each.fresh) >= _AHEAD or len(each.undone) >= MOST]
            nowhere = bool(full) and len(full) == len(ledgers)
            # naming none means all, also those that a sharing out brings while this waits
            open_ = [TopicPartition(self.topic, each.partition) for each in ledgers if each not in full] if full else []
            try:
                if nowhere:
                    self._hungry.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN / 1000):
                            await self._hungry.wait()
                wait = 0 if nowhere else _LOOK_AGAIN if full else _IDLE
                found = await self.consumer.getmany(*open_, timeout_ms=wait, max_records=1 if nowhere else _AT_A_TIME)
            except TROUBLE as error:
                self._complain(error)
                await asyncio.sleep(_PAUSE)
                continue
            for place, records in found.items():
                ledger = self.ledgers.get(place.partition)
                if ledger is not None and records and not self.ended:
                    self._take_in(ledger, records)
            await asyncio.sleep(0)

    def _take_in(self, ledger: Ledger, records: Sequence[object]) -> None:
        if records[0].offset > ledger.position and ledger.forget_unread(records[0].offset):  # type: ignore[attr-defined]
            self.dirty(ledger)
        for record in records:
            again = ledger.read(record)
            if again is not None:
                self.line.put(again)
        if self.record.spec.fifo:
            while ledger.fresh:
                entry = ledger.fresh.popleft()
                ledger.begin(entry)
                if entry.offset < ledger.floor:
                    ledger.finish(entry)
                else:
                    self.line.put(entry)
        ledger.skip(ledger.floor)
        self._work.set()

    def _complain(self, error: BaseException) -> None:
        """Tell whoever waits of what does not pass by itself."""
        if private.is_broken(self.consumer):
            self.fail(error)
        elif isinstance(error, theirs.KafkaError) and not error.retriable:
            self._refused = not self.joined.is_set()
            found = fault(error, self.desk.address.shown)
            for subscription in list(self.subscriptions):
                subscription.fail(found)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _take(self) -> list[Entry]:
        """What is taken for those who have room, and to be committed before they get it."""
        if self.paused or self.ending:
            return []
        room = sum(each.room for each in self.subscriptions) - len(self._ready)
        alone = sum(not each.suspects for each in self.subscriptions) - sum(each.suspect for each in self._ready)
        open_ = [each for each in self.ledgers.values() if each.partition not in self.over]
        taken = self.line.take(room, alone, open_)
        for entry in taken:
            entry.stage = Stage.TAKEN
            entry.attempts += 1
            self._dirty.add(entry.ledger)
        if taken:
            self._hungry.set()
        return taken

    async def _commit(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            taken = self._take()
            self._look_over()
            async with self.committing:
                if self._dirty and not self.silent:
                    await self._write(taken)
            if not self.paused and not self.ending:
                self.offer()
            else:
                self.trim()
            await self._log.trim(self.ledgers.values())

    async def _write(self, taken: list[Entry]) -> None:
        dirty, self._dirty = self._dirty, set()
        waiters = self._waiters.all()
        states = {ledger: (ledger.watermark, ledger.text()) for ledger in dirty if not ledger.gone}
        places = {TopicPartition(self.topic, each.partition): state for each, state in states.items()}
        for ledger, state in states.items():
            ledger.attempt(state)
        try:
            async with asyncio.timeout(self.desk.address.timeout):
                await self.consumer.commit(places)
        except BaseException as error:
            self._dirty |= {ledger for ledger in dirty if not ledger.gone}
            self._ready.extend(entry for entry in taken if entry.stage is Stage.TAKEN)
            self.untake_all()
            if not isinstance(error, TROUBLE):
                raise
            _log.debug("a commit for queue %r is tried again: %s", self.record.spec.name, error)
            if isinstance(error, FINAL):
                self._complain(error)
            await asyncio.sleep(_PAUSE)
        else:
            for ledger, state in states.items():
                ledger.attempted[:] = [state]
            self._ready.extend(entry for entry in taken if entry.stage is Stage.TAKEN)
            self._waiters.committed(waiters)

    def _look_over(self) -> None:
        """Ask for the partitions to be shared out again, once what was to be finished first is."""
        if self.over and not self.paused:
            waiting = [each for each in self.over if each in self.ledgers and self.ledgers[each].held]
            if not waiting:
                self.over = ()
                private.join_again(self.consumer)
