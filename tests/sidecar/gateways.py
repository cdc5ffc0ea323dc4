"""A gateway for tests, which writes down what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reported = list[tuple[str, dict[str, Any]]]


@contextmanager
def gateway(answer: Callable[[str, dict[str, Any]], int] = lambda _path, _body: 200, port: int = 0) -> Iterator[Any]:
    """A gateway that writes down what it takes; `answer` chooses the status."""
    taken: Reported = []
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = answer(self.path, body)
            asked.append(self.path)
            if status == 200:
                taken.append((self.path, body))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_words: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.taken, server.asked = taken, asked
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
