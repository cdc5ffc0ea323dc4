"""Asks the service for one thing at a time, and maps what comes of it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from oncue.core.errors import ConnectionLostError, QueueNotFoundError, TransportClosedError
from oncue.transports.polling.lines import pause
from oncue.transports.sqs.address import Address
from oncue.transports.sqs.faults import fault, is_passing

_NEW, _LOOK = 3.0, 0.2
"""Seconds for which a queue that was just made may not be known everywhere, and after which it is asked for again."""


class Calls:
    """One client, opened by `open`. `count` has how often each operation was asked for."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.count: Counter[str] = Counter()
        self._new: dict[str, float] = {}
        self._stack = AsyncExitStack()
        self._client: Any = None

    async def open(self) -> None:
        """Find region and profile; nothing is asked yet. Raise `InvalidValueError`."""
        from oncue.transports.sqs.client import new_client

        try:
            self._client = await self._stack.enter_async_context(new_client(self.address))
        except Exception as error:
            raise fault(error, self.address.shown) from error

    async def close(self) -> None:
        self._client, stack = None, self._stack
        await stack.aclose()

    @property
    def endpoint(self) -> str:
        """The URL that is asked."""
        return str(self._client.meta.endpoint_url)

    def made(self, url: str) -> None:
        """The queue of this URL was just made: the service may need a moment until it is known everywhere."""
        self._new[url] = asyncio.get_running_loop().time() + _NEW

    def deleted(self, url: str) -> None:
        """The queue of this URL is meant not to be there."""
        self._new.pop(url, None)

    async def ask(
        self, operation: str, queue: str | None = None, *, extra: float = 0.0, until: float = math.inf, **what: Any
    ) -> Any:
        """The answer, within the time that the address allows and `extra` seconds.

        What is refused as too much, or because the service cannot at the moment, is asked again within that time, and not after
        `until`; then that is `ThrottledError` or another `ConnectionLostError`. So a message may be stored twice, under one id.
        """
        loop = asyncio.get_running_loop()
        deadline = min(until, loop.time() + self.address.timeout)
        attempt = 0
        while True:
            try:
                return await self._once(operation, queue, extra, what)
            except ConnectionLostError as error:
                seconds = pause(attempt)
                attempt += 1
                if not is_passing(error) or loop.time() + seconds > deadline:
                    raise
            except QueueNotFoundError:
                seconds = _LOOK
                if loop.time() > self._new.get(what.get("QueueUrl", ""), 0.0):
                    raise
            await asyncio.sleep(seconds)

    async def _once(self, operation: str, queue: str | None, extra: float, what: Mapping[str, Any]) -> Any:
        if self._client is None:
            raise TransportClosedError
        self.count[operation] += 1
        try:
            async with asyncio.timeout(self.address.timeout + extra):
                return await getattr(self._client, operation)(**what)
        except Exception as error:
            if self._client is None:
                raise TransportClosedError from error
            raise fault(error, self.address.shown, queue) from error


def moment(answer: Mapping[str, Any]) -> int | None:
    """When the service answered, by its own clock, in milliseconds since 1970, cut to the second before; None if it does
    not say."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not date:
        return None
    try:
        found: datetime = parsedate_to_datetime(date)
    except ValueError:
        return None
    return int(found.timestamp() * 1000)
