"""The one thread of this process that writes to a store, and the loop that it runs.

It takes what event loops ask of it, puts everything that has gathered into one transaction, adds claims for the
subscriptions that have room, and hands out results after the commit. While it waits for the disk, more gathers: the busier,
the larger the transactions.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from oncue.core.errors import ConnectionLostError, QueueNotFoundError, TransportClosedError, TransportError, again
from oncue.transports.sqlite.batch import LOAD, Batch
from oncue.transports.sqlite.clock import ORIGIN, steady, wall
from oncue.transports.sqlite.feed import Feed, Grant, Kind, Port, Request, Stage
from oncue.transports.sqlite.file import BUSY, mapped, place_of
from oncue.transports.sqlite.schema import MIGRATIONS, READY, open_store, reopen_store
from oncue.transports.sqlite.store import Change, Queue, Store
from oncue.transports.sqlite.upkeep import Upkeep
from oncue.transports.sqlite.wake import Bell

_log = logging.getLogger("oncue.transports.sqlite")

_TICK = 1.0
"""Seconds after which an idle consumer looks by itself, in case that a wake-up got lost."""
_POLL = 0.05
"""The same where processes cannot wake each other."""
_MOST = 4096
_NOTICE_EVERY = 20_000
"""Microseconds between looks at what has come due, while there is no rest."""


class Writer:
    """Started by the first transport on a file, stopped by the last. `turn` is held while the connection is in use."""

    def __init__(self, path: Path, busy: float = BUSY) -> None:
        """Open the store, which blocks; raises as `open_store`."""
        self.path = path
        self._busy = busy
        self.turn = threading.Lock()
        self.abandoned = False
        self._store: Store | None = Store(open_store(path, busy=busy), busy)
        self._place = place_of(path)
        self._bell = Bell(path)
        self._upkeep = Upkeep()
        self._inbox: deque[Request] = deque()
        self._feeds: list[Feed] = []
        self._gone: deque[Feed] = deque()
        self._noticed = 0
        self._stopping = False
        self._ended = False
        self._asleep = False
        self._seen = -1
        self._selector = selectors.DefaultSelector()
        self._nudge, self._nudged = socket.socketpair()
        self._nudge.setblocking(False)
        self._nudged.setblocking(False)
        self._selector.register(self._nudged, selectors.EVENT_READ)
        self._listening = False
        self._thread = threading.Thread(target=self._run, name=f"oncue-{path.name}", daemon=True)
        self._thread.start()

    # From any thread

    def submit(self, requests: Iterable[Request]) -> None:
        """Ask for something; the answers come through the requests' ports."""
        self._inbox.extend(requests)
        if self._asleep:
            self._poke()
        if self._ended:
            self._refuse()

    def discard(self, feed: Feed) -> None:
        """End a subscription whose leases cannot be given back now."""
        self._gone.append(feed)

    def stop(self) -> None:
        """Finish what was asked before, then end the thread and close the file. Blocks."""
        self._stopping = True
        self._poke()
        self._thread.join()

    def abandon(self) -> Callable[[], None]:
        """In a forked child: let go of what was inherited without touching what is the parent's. See `forks`."""
        self.abandoned = True
        store, self._store = self._store, None
        self._bell.close(inherited=True)
        self._nudge.close()
        self._nudged.close()

        def free() -> None:
            if store is not None:  # all of it stays until then, for its statements are SQLite's as well
                store.connection.close()

        return free

    def check(self) -> None:
        """Raise `ConnectionLostError` in a process that is not the one that opened the file."""
        if self.abandoned:
            raise ConnectionLostError(f"{self.path}: was opened before this process was forked: open it again here")

    def _poke(self) -> None:
        with suppress(OSError):
            self._nudge.send(b"\0")

    # In the writer's thread only

    def add(self, feed: Feed) -> None:
        self._feeds.append(feed)
        if not self._listening:
            heard = self._bell.listen()
            if heard is not None:
                self._selector.register(heard, selectors.EVENT_READ)
                self._listening = True

    def remove(self, store: Store, feed: Feed) -> None:
        """End a subscription and give back what it holds."""
        leases = self._forget(feed)
        if leases:
            with store.transaction():
                store.change([Change(lease.seq, lease.token, READY, ORIGIN, 1) for lease in leases], steady())
            self._spread({feed.queue.id})

    def announce(self, queue: Queue) -> None:
        """Let all subscriptions of a queue look again, here and in other processes."""
        self._spread({queue.id})

    def _run(self) -> None:
        try:
            while True:
                requests = self._next()
                with self.turn:
                    if self.abandoned:
                        return
                    self._serve(requests)
                if self._stopping and not self._inbox:
                    return
        except BaseException:
            _log.critical("the writer of %s ended because of a fault in it", self.path, exc_info=True)
            raise
        finally:
            self._close()

    def _next(self) -> list[Request]:
        """What to do next: some requests, or an empty list when it is time to look for messages. Waits if there is neither."""
        while self._gone:
            self._forget(self._gone.popleft())
        if not self._inbox and not self._stopping and not self._time_to_look():
            self._sleep()
        if steady() - self._noticed > _NOTICE_EVERY:
            self._notice_what_is_due()
        requests: list[Request] = []
        size = 0
        while self._inbox and len(requests) < _MOST and size < LOAD:
            if self._inbox[0].kind == Kind.CALL and requests:
                break
            request = self._inbox.popleft()
            requests.append(request)
            if request.kind == Kind.CALL:
                break
            if request.rows:
                size += request.size
        return requests

    def _time_to_look(self) -> bool:
        return any(feed.hungry and feed.has_room for feed in self._feeds)

    def _sleep(self) -> None:
        """Wait until something is asked or heard, or is due."""
        timeout = self._timeout()
        self._asleep = True
        try:
            if self._inbox or self._stopping:
                return
            events = self._selector.select(timeout)
        finally:
            self._asleep = False
        heard: set[int] | None = set()
        for key, _ in events:
            if key.fileobj is self._nudged:
                with suppress(BlockingIOError):
                    self._nudged.recv(4096)
            else:
                heard = self._bell.heard()
        for feed in self._feeds:
            if heard is None or feed.queue.id in heard:
                feed.hungry = True
        self._notice_what_is_due()

    def _timeout(self) -> float | None:
        upkeep = self._upkeep.timeout()
        if not self._feeds:
            return upkeep
        seconds = _TICK if self._listening else _POLL
        if upkeep is not None:
            seconds = min(seconds, upkeep)
        now, ticks = wall(), steady()
        for feed in self._feeds:
            if feed.has_room:
                if feed.scheduled is not None:
                    seconds = min(seconds, (feed.scheduled - now) / 1e6)
                if feed.leased is not None:
                    seconds = min(seconds, (feed.leased - ticks) / 1e6)
            first_end = feed.first_end()
            if first_end is not None:
                seconds = min(seconds, (first_end - ticks) / 1e6)
            with suppress(IndexError):
                seconds = min(seconds, (feed.buffer[0].fresh_until - ticks) / 1e6)
        return max(0.0005, seconds)

    def _notice_what_is_due(self) -> None:
        now, ticks = wall(), steady()
        self._noticed = ticks
        for feed in self._feeds:
            if (feed.scheduled is not None and feed.scheduled <= now) or (
                feed.leased is not None and feed.leased <= ticks
            ):
                feed.hungry = True
            feed.lapse(ticks)
            self._take_back_stale(feed, ticks)

    def _take_back_stale(self, feed: Feed, ticks: int) -> None:
        """Give back what nobody came for in half of a lease; no more is claimed until somebody comes."""
        while True:
            try:
                if feed.buffer[0].fresh_until >= ticks:
                    return
                feed.active = False
                lease = feed.buffer.popleft()
            except IndexError:
                return
            if lease.fresh_until >= ticks:
                feed.buffer.appendleft(lease)  # a receiver was faster
                return
            if lease.stage is not Stage.OVER:
                self._inbox.append(Request(Kind.RETURN, feed.port, lease=lease))

    def _serve(self, requests: list[Request]) -> None:
        requests = self._note_wants(requests)
        try:
            store = self._ready_store()
            if requests and requests[0].kind == Kind.CALL:
                self._call(store, requests[0])
            else:
                self._transact(store, requests)
        except Exception as error:
            self._fail(requests, mapped(error, self.path))
            return
        try:
            self._tend(store)
        except Exception as error:
            self._fail([], mapped(error, self.path))

    def _note_wants(self, requests: list[Request]) -> list[Request]:
        """Feed those who ask to be fed, and leave the rest."""
        others = []
        for request in requests:
            if request.kind != Kind.WANT:
                others.append(request)
            elif request.feed is not None:
                request.feed.hungry = True
                self._give_back_surplus(request.feed, others)
        return others

    def _call(self, store: Store, request: Request) -> None:
        assert request.call is not None
        try:
            request.result = request.call(store)
        except TransportError as error:
            request.error = error
        finally:
            store.rollback()
        request.port.deliver([request], ())

    def _transact(self, store: Store, requests: list[Request]) -> None:
        if not requests and not self._worth_it(store):
            return
        batch = Batch(requests, self._feeds)
        batch.run(store)
        for request, error in batch.errors.items():
            request.error = error
        fed = batch.apply()
        self._deliver(requests, [(feed, None) for feed in fed])
        for queue, until in batch.ends.items():
            self._expect_end(queue, until)
        if batch.news:
            self._spread(batch.news)
        self._upkeep.used()

    def _give_back_surplus(self, feed: Feed, requests: list[Request]) -> None:
        """After `resize`: what was leased ahead and does not fit any more."""
        for _ in range(len(feed.granted) - feed.prefetch):
            try:
                requests.append(Request(Kind.RETURN, feed.port, lease=feed.buffer.pop()))
            except IndexError:
                return

    def _worth_it(self, store: Store) -> bool:
        """Whether there is a message for anybody, found out without keeping others from writing."""
        worth = False
        for feed in [feed for feed in self._feeds if feed.hungry and feed.has_room]:
            look = store.look(feed.queue)
            if not look.exists:
                store.refresh_queues()
                name = feed.queue.spec.name
                if not store.knows(name):
                    feed.active = False
                    feed.hungry = False
                    self._deliver([], [(feed, QueueNotFoundError(name))])
                    continue
                feed.queue = store.queue(name)
                look = store.look(feed.queue)
            feed.scheduled, feed.leased = look.scheduled, look.leased
            feed.hungry = (
                look.ready
                or (look.suspects and not feed.suspects)
                or (look.scheduled is not None and look.scheduled <= wall())
                or (look.leased is not None and look.leased <= steady())
            )
            worth |= feed.hungry
        return worth

    def _deliver(self, requests: Sequence[Request], feeds: Sequence[tuple[Feed, TransportError | None]]) -> None:
        """Send results to the event loops that wait for them; subscriptions of closed loops are ended."""
        ports: dict[Port, tuple[list[Request], list[tuple[Feed, TransportError | None]]]] = {}
        for request in requests:
            if request.future is not None:
                ports.setdefault(request.port, ([], []))[0].append(request)
        for feed, error in feeds:
            ports.setdefault(feed.port, ([], []))[1].append((feed, error))
        for port, (answered, changed) in ports.items():
            if not port.deliver(answered, changed):
                for feed in [feed for feed in self._feeds if feed.port is port]:
                    self._inbox.append(
                        Request(Kind.CALL, port, call=lambda store, feed=feed: self.remove(store, feed))  # type: ignore[misc]
                    )

    def _fail(self, requests: Sequence[Request], error: TransportError) -> None:
        """Nothing of it was done: tell everybody concerned, and start afresh with the next request."""
        if self._store is not None:
            with suppress(Exception):
                self._store.connection.close()
            self._store = None
        for request in requests:
            request.error = again(error)
            if request.lease is not None and request.lease.stage is Stage.SETTLING:
                request.lease.stage = Stage.HELD
        concerned = [feed for feed in self._feeds if feed.has_room and (feed.hungry or not requests)]
        for feed in concerned:
            feed.active = False
        self._deliver(requests, [(feed, error) for feed in concerned])

    def _spread(self, queues: set[int]) -> None:
        for feed in self._feeds:
            if feed.queue.id in queues and not feed.hungry:
                feed.hungry = True
        self._bell.ring(queues)

    def _expect_end(self, queue: int, until: int) -> None:
        """All in this process who wait for a queue need to know when a lease of it ends."""
        for feed in self._feeds:
            if feed.queue.id == queue:
                feed.leased = until if feed.leased is None else min(feed.leased, until)

    def _tend(self, store: Store) -> None:
        """What has to be done now and then, or when there is nothing else to do."""
        if not self._inbox and self._feeds:
            version = store.data_version()
            if version != self._seen:
                self._seen = version
                for feed in self._feeds:
                    feed.hungry = True
        if self._upkeep.due(others=bool(self._feeds)):
            self._upkeep.run(store, self.path, len(MIGRATIONS))

    def _ready_store(self) -> Store:
        if self._store is None:
            place = place_of(self.path)
            self._store = store = Store(reopen_store(self.path, busy=self._busy), self._busy)
            self._place = place
            store.refresh_queues()
            for feed in self._feeds:  # it may be another file by now, in which ids mean other queues
                name = feed.queue.spec.name
                feed.queue = store.queue(name) if store.knows(name) else feed.queue._replace(id=0)
        elif place_of(self.path) != self._place:
            raise ConnectionLostError(f"{self.path}: the file was removed or replaced")
        return self._store

    def _close(self) -> None:
        if self.abandoned:
            return
        self._bell.close()
        self._selector.close()
        self._nudge.close()
        self._nudged.close()
        if self._store is not None:
            with suppress(Exception):
                self._store.connection.close()
        self._ended = True
        self._refuse()

    def _refuse(self) -> None:
        """Nobody will do what is still asked."""
        while self._inbox:
            request = self._inbox.popleft()
            request.error = TransportClosedError()
            self._deliver([request], ())

    def _forget(self, feed: Feed) -> list[Grant]:
        """End a subscription; the leases that it held."""
        with suppress(ValueError):
            self._feeds.remove(feed)
        feed.active = False
        feed.buffer.clear()
        leases = list(feed.granted.values())
        for lease in leases:
            feed.forget(lease)
        return leases
