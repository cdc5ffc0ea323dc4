"""The one connection of a transport: opened when it is first needed, and opened anew after it broke."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future, Task
from collections.abc import Callable

from oncue.core.errors import AccessDeniedError, ConnectionLostError, TransportClosedError, TransportError, again
from oncue.transports.nats.address import Address
from oncue.transports.nats.core import ClosedError, Connection, connect
from oncue.transports.nats.faults import fault

_log = logging.getLogger("oncue.transports.nats")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds between attempts to connect, which double."""


class Link:
    """Whoever needs the connection asks for it; all who ask at the same time wait for one attempt."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.current: Connection | None = None
        """The connection, if there is one now."""
        self.on_lost: Callable[[], object] = lambda: None
        self._attempt: Task[Connection] | None = None
        self._endpoints = address.endpoints()
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._closed = False

    async def connection(self) -> Connection:
        """The connection. Raises `ConnectionLostError`, `AccessDeniedError` or `TransportClosedError`; may be cancelled."""
        if self._closed:
            raise TransportClosedError
        if self.current is not None:
            return self.current
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._connect())
            self._attempt.add_done_callback(_nobody_may_wait)
        attempt = self._attempt
        await asyncio.wait([attempt])
        if attempt.cancelled():
            raise TransportClosedError
        error = attempt.exception()
        if error is not None:
            raise again(error) if isinstance(error, TransportError) else error
        return attempt.result()

    async def close(self) -> None:
        """Hang up. Whoever waits for a connection gets none."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self.current is not None:
            await self.current.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before - loop.time()))
        try:
            connection = await self._reach()
        except TransportError:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            raise
        else:
            self._pause = _FIRST_PAUSE
        finally:
            self._not_before = loop.time() + self._pause
        if not connection.closed.done():
            self.current = connection
        connection.closed.add_done_callback(lambda closed: self._over(connection, closed))
        return connection

    def _over(self, connection: Connection, closed: Future[ClosedError]) -> None:
        if self.current is connection:
            self.current = None
            self.on_lost()
        if not self._closed:
            _log.info("the connection was lost: %s", closed.result())

    async def _reach(self) -> Connection:
        """A connection to the first server that takes us; the one that did not comes last the next time."""
        shown = self.address.shown
        problem: TransportError = ConnectionLostError(f"{shown}: no server")
        for endpoint in list(self._endpoints):
            try:
                return await connect(endpoint)
            except (OSError, ClosedError, ValueError, ImportError) as error:  # among them TimeoutError
                where = f"{shown}: {endpoint.host}:{endpoint.port}" if len(self._endpoints) > 1 else shown
                problem = fault(error, where)
                if isinstance(problem, AccessDeniedError):
                    break
                self._endpoints.append(self._endpoints.pop(0))
        raise problem


def _nobody_may_wait(attempt: Task[Connection]) -> None:
    """All who asked were cancelled, perhaps; then nobody has to hear of it."""
    if not attempt.cancelled():
        attempt.exception()
