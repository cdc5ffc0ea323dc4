"""Posts JSON over HTTP from a few threads, each with a connection that lasts."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

_THREADS = 4
_WITHIN = 5.0
"""Seconds for one request."""


class Poster:
    """Posts to paths under `url`. Ended by `close`, which waits for nobody."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme.lower() == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._path = parts.path.rstrip("/")
        self._connections = threading.local()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="oncue-gateway")

    async def post(self, path: str, body: bytes) -> tuple[int, str]:
        """The status of the answer, 0 when there was none, and what is wrong with it. May be cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._post, path, body)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _post(self, path: str, body: bytes) -> tuple[int, str]:
        found: http.client.HTTPConnection | None = getattr(self._connections, "found", None)
        fresh = found is None
        connection = self._connect() if found is None else found
        try:
            return self._ask(connection, path, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._connections.found = None
            if fresh:
                return 0, f"{type(error).__name__}: {error}"
        return self._post(path, body)  # a connection that had lasted may have been closed at the other end

    def _connect(self) -> http.client.HTTPConnection:
        if self._secure:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=_WITHIN, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=_WITHIN)

    def _ask(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, str]:
        connection.request("POST", self._path + path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read(200).decode("utf-8", "replace").strip()
        if answer.will_close or answer.read(65536):
            connection.close()
            self._connections.found = None
        else:
            self._connections.found = connection
        return answer.status, "" if answer.status in {200, 201} else f"{answer.status} {text}"
