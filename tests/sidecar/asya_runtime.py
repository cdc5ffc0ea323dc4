"""Stands in for Asya's runtime: one connection for each message, one after the other, and no more than Asya's does.

Written from the description of its behaviour. It speaks no protocol of ours, and its ready file says so.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path

FOLDER = Path(os.environ["ASYA_SOCKET_DIR"])
SOCKET = FOLDER / "asya-runtime.sock"
READY = FOLDER / "runtime-ready"
MODE = os.environ.get("ASYA_HANDLER_MODE", "payload")


def load():
    module, _, name = os.environ["ASYA_HANDLER"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def fault(code, error):
    details = {"message": str(error), "type": type(error).__name__, "traceback": traceback.format_exc()}
    return [{"error": code, "details": details}]


def check(envelope):
    if "payload" not in envelope:
        raise ValueError("Missing required field 'payload' in envelope")
    if "route" not in envelope:
        raise ValueError("Missing required field 'route' in envelope")
    kept = {name: envelope[name] for name in ("payload", "route", "id", "parent_id", "headers") if name in envelope}
    kept["route"].setdefault("current", 0)
    return kept


def answer(handler, body):
    try:
        envelope = check(json.loads(body))
    except (ValueError, UnicodeDecodeError) as error:
        return fault("msg_parsing_error", error)
    try:
        if MODE == "envelope":
            result = handler(envelope)
            return [] if result is None else list(result) if isinstance(result, (list, tuple)) else [result]
        result = handler(envelope["payload"])
        payloads = [] if result is None else list(result) if isinstance(result, (list, tuple)) else [result]
        route = envelope["route"]
        more = {"headers": envelope["headers"]} if "headers" in envelope else {}
        return [{"payload": each, "route": {**route, "current": route["current"] + 1}, **more} for each in payloads]
    except Exception as error:
        return fault("processing_error", error)


def read(connection, size):
    data = b""
    while len(data) < size:
        piece = connection.recv(min(65536, size - len(data)))
        if not piece:
            raise ConnectionError("connection closed")
        data += piece
    return data


def serve(connection, handler):
    with connection:
        try:
            try:
                (size,) = struct.unpack(">I", read(connection, 4))
                found = answer(handler, read(connection, size))
            except ConnectionError as error:
                found = fault("connection_error", error)
            text = json.dumps(found).encode()
            connection.sendall(struct.pack(">I", len(text)) + text)
        except (OSError, TypeError, ValueError) as error:
            print("no reply:", error, file=sys.stderr, flush=True)  # and the connection closes, as Asya's does


def stop(*_):
    SOCKET.unlink(missing_ok=True)
    READY.unlink(missing_ok=True)
    os._exit(0)


def main():
    handler = load()
    SOCKET.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(SOCKET))
    listener.listen(5)
    signal.signal(signal.SIGTERM, stop)
    READY.write_text("ready")
    print("ready at", SOCKET, file=sys.stderr, flush=True)
    while True:
        connection, _ = listener.accept()
        serve(connection, handler)


main()
