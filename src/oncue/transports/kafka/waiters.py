"""Those who wait until something is committed, for as long as an answer may take."""

from __future__ import annotations

import asyncio
from asyncio import Future, TimerHandle
from collections.abc import Callable, Iterable

from oncue.core.errors import ConnectionLostError, TransportError
from oncue.transports.kafka.ledger import Ledger


class Waiters:
    """Each is told once: that it is committed, that it was not in time, or that the partition is somebody else's."""

    def __init__(self, timeout: float, where: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._where = where
        self._all: dict[Future[None], tuple[Ledger, float]] = {}  # until when each waits, in this order
        self._timer: TimerHandle | None = None

    def add(self, ledger: Ledger) -> Future[None]:
        """One more, who waits for the next commit of this partition that begins from now on."""
        future: Future[None] = self._loop.create_future()
        self._all[future] = (ledger, self._loop.time() + self._timeout)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._on_time)
        return future

    def all(self) -> list[Future[None]]:
        return list(self._all)

    def committed(self, futures: Iterable[Future[None]]) -> None:
        for future in futures:
            if self._all.pop(future, None) is not None and not future.done():
                future.set_result(None)

    def lose(self, ledger: Ledger, error: Callable[[], TransportError]) -> None:
        for future, (each, _) in list(self._all.items()):
            if each is ledger:
                self._fail(future, error())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _on_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        for future, (_, until) in list(self._all.items()):
            if until > now:
                self._timer = self._loop.call_at(until, self._on_time)
                return
            self._fail(future, ConnectionLostError(f"{self._where}: not committed in time"))

    def _fail(self, future: Future[None], error: TransportError) -> None:
        del self._all[future]
        if not future.done():
            future.set_exception(error)
