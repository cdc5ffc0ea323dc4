"""The gateways that manifests name, and what is told to them from this process: each by the actors of its manifest, and the
ends of routes to all, for the built-in end actors have no manifest that could name one."""

from __future__ import annotations

import asyncio
import time

from oncue.results import Status
from oncue.sidecar.actor import ActorSettings
from oncue.sidecar.gateway import EndReports, Gateway, Report, observer_of
from oncue.sidecar.observer import NOBODY, Observer


class Gateways:
    """One for each URL. Ended by `close`."""

    def __init__(self) -> None:
        self._found: dict[str, Gateway] = {}

    def at(self, url: str) -> Gateway:
        """The gateway with this URL."""
        found = self._found.get(url)
        if found is None:
            found = self._found[url] = Gateway(url)
        return found

    def observer(self, url: str, actor: ActorSettings) -> Observer:
        """Who tells the gateway with this URL about the actor's messages; nobody when the URL is empty."""
        return observer_of(self.at(url), actor) if url else NOBODY

    def ends(self, status: Status) -> Observer:
        """Who tells all gateways how routes end, those that are known by then."""
        return EndReports(self, status)

    def tell(self, id: str, report: Report) -> None:
        """Have `report` sent to all, as `Gateway.tell`."""
        for gateway in self._found.values():
            gateway.tell(id, report)

    async def close(self, within: float) -> None:
        """Send what waits for `within` seconds at most, and drop the rest."""
        deadline = time.monotonic() + within
        await asyncio.gather(*(each.close(max(0.0, deadline - time.monotonic())) for each in self._found.values()))
