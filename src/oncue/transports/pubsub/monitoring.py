"""Asks Cloud Monitoring how many messages a subscription has, minutes late: Pub/Sub itself has no count."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from google.auth.transport.requests import AuthorizedSession

from oncue.core.errors import AccessDeniedError, ConnectionLostError, OnCueError, ThrottledError
from oncue.transports.pubsub.address import Address
from oncue.transports.pubsub.faults import fault

_SERVICE = "https://monitoring.googleapis.com"
_METRIC = "pubsub.googleapis.com/subscription/num_undelivered_messages"
_BACK = timedelta(minutes=10)
"""How old the last count may be."""
_SESSION: Any = AuthorizedSession
"""It says no types."""


class Monitoring:
    """One for each transport, with its credentials."""

    def __init__(self, address: Address, credentials: Any) -> None:
        self._address = address
        self._session = _SESSION(credentials)

    async def undelivered(self, subscription: str) -> int | None:
        """About how many messages are not acknowledged yet, those that are held included; None where there is no count."""
        try:
            return await asyncio.to_thread(self._ask, subscription)
        except OnCueError:
            raise
        except Exception as error:
            raise fault(error, f"{self._address.shown}, Cloud Monitoring") from error

    def close(self) -> None:
        self._session.close()

    def _ask(self, subscription: str) -> int | None:
        now = datetime.now(UTC)
        answer = self._session.get(
            f"{self._address.monitoring or _SERVICE}/v3/projects/{self._address.project}/timeSeries",
            params={
                "filter": f'metric.type = "{_METRIC}" AND resource.labels.subscription_id = "{subscription}"',
                "interval.startTime": (now - _BACK).isoformat(),
                "interval.endTime": now.isoformat(),
            },
            timeout=self._address.timeout,
        )
        where = f"{self._address.shown}, Cloud Monitoring"
        if answer.status_code in {401, 403}:
            raise AccessDeniedError(f"{where}: access was denied; the role is roles/monitoring.viewer")
        if answer.status_code == 429:
            raise ThrottledError(f"{where}: asked too often")
        if answer.status_code != 200:
            raise ConnectionLostError(f"{where}: answered {answer.status_code}")
        for series in answer.json().get("timeSeries") or ():
            for point in series.get("points") or ():  # the newest is the first
                return int(point["value"]["int64Value"])
        return None
