"""A connection of a transport: opened when it is first needed, and opened anew after it broke."""

from __future__ import annotations

import asyncio
import logging

from oncue.core.errors import AccessDeniedError, ConnectionLostError, TransportClosedError, TransportError, again
from oncue.transports.rabbitmq.address import Address
from oncue.transports.rabbitmq.amqp import ClosedError, Connection, ConnectionClosed, connect
from oncue.transports.rabbitmq.faults import fault

_log = logging.getLogger("oncue.transports.rabbitmq")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds between attempts to connect, which double."""
_GOODBYE = 3.0
"""Seconds that the server may take to say goodbye."""


class Link:
    """Whoever needs the connection asks for it; all who ask at the same time wait for one attempt."""

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self._name = name
        self._connection: Connection | None = None
        self._attempt: asyncio.Task[Connection] | None = None
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._closed = False

    async def connection(self) -> Connection:
        """The connection. Raises `ConnectionLostError`, `AccessDeniedError` or `TransportClosedError`; may be cancelled."""
        if self._closed:
            raise TransportClosedError
        if self._connection is not None and not self._connection.closed.done():
            return self._connection
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
        """Say goodbye. Whoever waits for a connection gets none."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self._connection is not None:
            await self._connection.close(min(self.address.timeout, _GOODBYE))

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before - loop.time()))
        try:
            self._connection = connection = await self._reach()
        except TransportError:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            raise
        else:
            self._pause = _FIRST_PAUSE
        finally:
            self._not_before = loop.time() + self._pause
        connection.closed.add_done_callback(self._over)
        return connection

    def _over(self, closed: asyncio.Future[ConnectionClosed]) -> None:
        if not self._closed:
            _log.info("the connection was lost: %s", closed.result())

    async def _reach(self) -> Connection:
        """A connection to the first server that takes us."""
        shown = self.address.shown
        problem: TransportError = ConnectionLostError(f"{shown}: no server")
        for endpoint in self.address.endpoints(self._name):
            try:
                return await connect(endpoint)
            except (OSError, ClosedError) as error:  # among them TimeoutError
                problem = fault(
                    error, f"{shown}: {endpoint.host}:{endpoint.port}" if len(self.address.hosts) > 1 else shown
                )
                if isinstance(problem, AccessDeniedError):
                    break
        raise problem


def _nobody_may_wait(attempt: asyncio.Task[Connection]) -> None:
    """All who asked were cancelled, perhaps; then nobody has to hear of it."""
    if not attempt.cancelled():
        attempt.exception()
