"""Asks the server's management for what AMQP does not tell: how many messages are held by consumers."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from oncue.core.errors import AccessDeniedError, ConnectionLostError, TransportError
from oncue.core.redact import redact, redact_url

_REFUSED = frozenset({401, 403})
_ALARMS = {"mem_alarm": "is short of memory", "disk_free_alarm": "is short of disk space"}


class Management:
    """The management plugin at `url`, such as `http://guest:guest@localhost:15672`, asked in threads.

    Its counts are some seconds old: servers collect them every five seconds unless they are set up otherwise.
    """

    def __init__(self, url: str, user: str, password: str, timeout: float) -> None:
        parts = urlsplit(url)
        self.shown = redact_url(url)
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "localhost", parts.port
        self._path = parts.path.rstrip("/")
        credentials = f"{unquote(parts.username or user)}:{unquote(parts.password or password)}"
        self._head = {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}
        self._timeout = timeout

    async def unacknowledged(self, vhost: str, queue: str) -> int | None:
        """How many messages of the queue are held by consumers; None while the server has not counted them.

        Raises `AccessDeniedError` or `ConnectionLostError`. When cancelled, the question goes on in its thread.
        """
        found = await asyncio.to_thread(self._get, f"queues/{quote(vhost, '')}/{quote(queue, '')}")
        count = found.get("messages_unacknowledged") if isinstance(found, dict) else None
        return count if isinstance(count, int) else None

    async def alarms(self) -> Sequence[str]:
        """What the nodes of the cluster are short of, and which are down. Raises and is cancelled as `unacknowledged`."""
        nodes = await asyncio.to_thread(self._get, "nodes")
        said: list[str] = []
        for node in nodes if isinstance(nodes, list) else ():
            words = [word for field, word in _ALARMS.items() if node.get(field)]
            words += [] if node.get("running", True) else ["is down"]
            said += [f"node {node.get('name', '?')} {word}" for word in words]
        return said

    def _get(self, path: str) -> Any:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("GET", f"{self._path}/api/{path}", headers=self._head)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.client.OK:
                raise self._fault(answer.status, answer.reason)
            return json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ConnectionLostError(f"{self.shown}: {redact(str(error)) or type(error).__name__}") from error
        finally:
            connection.close()

    def _fault(self, status: int, reason: str) -> TransportError:
        if status in _REFUSED:
            return AccessDeniedError(f"{self.shown}: access was denied: {status} {reason}")
        return ConnectionLostError(f"{self.shown}: it answered {status} {reason}")
