"""One transaction for what many coroutines asked at the same moment: leases settled, messages stored, new leases claimed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oncue.core.errors import LeaseLostError, QueueNotFoundError, TransportError
from oncue.transports.sqlite.clock import ORIGIN, steady, wall
from oncue.transports.sqlite.feed import Feed, Grant, Kind, Request, Stage
from oncue.transports.sqlite.schema import LEASED, READY, SCHEDULED
from oncue.transports.sqlite.store import (
    Change,
    Claim,
    DoubtError,
    Holding,
    Look,
    Queue,
    Row,
    Store,
    Taken,
    lane_of,
    new_token,
)

LOAD = 16 * 1024 * 1024
"""Bytes: how much one transaction stores or claims, and how much is leased ahead of those who wait for it, about."""


class Batch:
    """The requests of one transaction and what comes of them.

    `run` does the work in the file; `apply` makes it known and must only be called after `run` has returned.
    """

    def __init__(self, requests: Sequence[Request], feeds: Iterable[Feed]) -> None:
        self.requests = requests
        self.feeds = feeds
        self.errors: dict[Request, TransportError] = {}
        self.news: set[int] = set()
        self.ends: dict[int, int] = {}
        self._settled: dict[Feed, list[Grant]] = {}
        self._claimed: list[tuple[Feed, Claim, Look, list[Taken]]] = []
        self._extended: list[tuple[Grant, int]] = []

    def run(self, store: Store) -> None:
        """Commit it all, or raise and have done nothing. Requests that cannot be met are in `errors` and change nothing."""
        try:
            self._run(store, careful=False)
        except DoubtError:
            self._reset()
            self._run(store, careful=True)

    def apply(self) -> list[Feed]:
        """Tell leases and feeds what happened; the feeds that have new leases."""
        for feed, leases in self._settled.items():
            for lease in leases:
                feed.forget(lease)
        for request, error in self.errors.items():
            if request.lease is not None:
                self._fail(request.lease, error)
        for lease, until in self._extended:
            lease.until = until
            lease.fresh_until = until - lease.queue.lease // 2
        fed = []
        for feed, claim, look, taken in self._claimed:
            feed.scheduled, feed.leased = look.scheduled, look.leased
            feed.hungry = look.ready or not look.exists
            if taken:
                self.ends[feed.queue.id] = claim.until
                self._grant(feed, claim, taken)
                fed.append(feed)
        return fed

    def _reset(self) -> None:
        self.errors.clear()
        self.news.clear()
        self._settled.clear()
        self._claimed.clear()
        self._extended.clear()

    def _run(self, store: Store, *, careful: bool) -> None:
        store.begin()
        try:
            now, ticks = wall(), steady()
            if careful:
                store.refresh_queues()
                self._look_closely(store, ticks)
            requests = (
                [request for request in self.requests if request not in self.errors] if self.errors else self.requests
            )
            self._settle(store, requests, now, ticks, careful=careful)
            rows: list[Row] = []
            for request in requests:
                rows += request.rows
            if rows:
                self.news |= store.insert(rows, now)
            for feed in self.feeds:
                self._claim(store, feed, now, ticks)
            store.commit()
        finally:
            store.rollback()

    def _look_closely(self, store: Store, ticks: int) -> None:
        """Find out which requests cannot be met."""
        asked = [request.lease.holding for request in self.requests if request.lease and request.kind != Kind.RETURN]
        held = store.held(asked, ticks) if asked else set()
        for request in self.requests:
            missing = next((row.queue for row in request.rows if not store.knows(row.queue)), None)
            lease = request.lease
            if missing is not None:
                self.errors[request] = QueueNotFoundError(missing)
            elif lease is not None and request.kind != Kind.RETURN and lease.holding not in held:
                self.errors[request] = LeaseLostError(lease.queue.spec.name, lease.message.id)

    def _settle(self, store: Store, requests: Sequence[Request], now: int, ticks: int, *, careful: bool) -> None:
        acks: list[Holding] = []
        changes: list[Change] = []
        extensions: dict[Holding, Change] = {}
        returns: list[Change] = []
        lanes: dict[int, tuple[Queue, set[str]]] = {}
        for request in requests:
            lease, kind = request.lease, request.kind
            if lease is None:
                continue
            seq, token = holding = lease.holding
            if kind == Kind.EXTEND:
                until = ticks + request.delay
                extensions[holding] = Change(seq, token, LEASED, until, 0)
                self._extended.append((lease, until))
                continue
            self._settled.setdefault(lease.feed, []).append(lease)
            if kind == Kind.ACK:
                acks.append(holding)
                if lease.queue.spec.fifo:
                    lanes.setdefault(lease.queue.id, (lease.queue, set()))[1].add(lane_of(lease.message.key))
                continue
            self.news.add(lease.queue.id)
            if kind == Kind.RETURN:
                returns.append(Change(seq, token, READY, ORIGIN, 1))
            elif request.delay:
                changes.append(Change(seq, token, SCHEDULED, now + request.delay, 0))
            else:
                changes.append(Change(seq, token, READY, ORIGIN, request.uncounted))
        met = True
        if extensions:
            met &= store.change(extensions.values(), ticks) == len(extensions)
        if acks:
            met &= store.remove(acks, ticks) == len(acks)
        if changes:
            met &= store.change(changes, ticks) == len(changes)
        if not met and not careful:
            raise DoubtError
        if returns:
            store.change(returns, ticks)
        for queue, keys in lanes.values():
            store.unblock(queue, keys, now)
            self.news.add(queue.id)

    def _claim(self, store: Store, feed: Feed, now: int, ticks: int) -> None:
        if not feed.active or not (feed.hungry or feed.queue.id in self.news or feed in self._settled):
            return
        settled = self._settled.get(feed, ())
        gone = [lease for lease in settled if feed.granted.get(lease.seq) is lease]
        count = feed.prefetch - len(feed.granted) + len(gone)
        size = LOAD - feed.load + sum(len(lease.message.body) for lease in gone)
        if size <= 0:
            feed.starved = True
            if feed.buffer or not feed.waiting:
                return
            count = min(count, 1)
        feed.starved = False
        if count <= 0:
            return
        suspects = feed.suspects == sum(lease.suspect for lease in gone)
        claim = Claim(count, size, suspects, ticks + feed.queue.lease, new_token())
        look, taken = store.take(feed.queue, claim, now, ticks)
        self._claimed.append((feed, claim, look, taken))

    @staticmethod
    def _grant(feed: Feed, claim: Claim, taken: Sequence[Taken]) -> None:
        leases = [
            Grant(feed, message, attempt, seq=seq, token=claim.token, until=claim.until, suspect=suspect)
            for seq, attempt, suspect, message in taken
        ]
        for lease in leases:
            feed.grant(lease)
        feed.buffer.extend(leases)

    @staticmethod
    def _fail(lease: Grant, error: TransportError) -> None:
        if isinstance(error, LeaseLostError):
            lease.feed.forget(lease)
        elif lease.stage is Stage.SETTLING:
            lease.stage = Stage.HELD
