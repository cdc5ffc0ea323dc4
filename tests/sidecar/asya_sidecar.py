"""Stands in for Asya's sidecar, on our store: one message at a time, a connection for each, headers lost on the way.

Written from the description of its behaviour: what the texts say and what is routed where.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from pathlib import Path

from oncue.core.message import Message, Send, new_id
from oncue.transports import open_transport
from oncue.transports.base import QueueSpec

NAME = os.environ["ASYA_ACTOR_NAME"]
SOCKET = Path(os.environ["ASYA_SOCKET_DIR"]) / "asya-runtime.sock"


def exchange(body: bytes) -> list[dict]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(SOCKET))
        connection.sendall(struct.pack(">I", len(body)) + body)
        with connection.makefile("rb") as answer:
            (size,) = struct.unpack(">I", answer.read(4))
            return json.loads(answer.read(size))


def send(actor: str, envelope: dict) -> Send:
    return Send(f"asya-{actor}", Message(json.dumps(envelope).encode(), new_id()))


def failed(envelope: dict, error: str, details: dict | None = None) -> Send:
    payload = {"error": error, "original_payload": envelope.get("payload")}
    if details:
        payload["details"] = details
    told = {"id": envelope["id"], "route": envelope["route"], "payload": payload}
    return send("error-end", told)


def outputs(body: bytes) -> list[Send]:
    envelope = json.loads(body)
    route = envelope["route"]
    found = route["actors"][route["current"]] if 0 <= route["current"] < len(route["actors"]) else ""
    if found != NAME:
        text = f"Route mismatch: message routed to wrong actor (expected: {NAME}, actual: {found})"
        return [failed(envelope, text)]
    items = exchange(body)
    if not items:
        return [send("happy-end", envelope)]
    sends = []
    for index, item in enumerate(items):
        if item.get("error"):
            return [*sends, failed(envelope, item["error"], item.get("details"))]
        child = {"id": envelope["id"], "route": item["route"], "payload": item["payload"]}
        if index:
            child |= {"id": f"{envelope['id']}-{index}", "parent_id": envelope["id"]}
        actors, current = item["route"]["actors"], item["route"]["current"]
        sends.append(send(actors[current] if 0 <= current < len(actors) else "happy-end", child))
    return sends


async def main() -> None:
    transport = await open_transport(os.environ["ONCUE_URL"])
    for queue in (f"asya-{NAME}", "asya-happy-end", "asya-error-end"):
        await transport.declare(QueueSpec(name=queue))
    while not SOCKET.with_name("runtime-ready").exists():
        await asyncio.sleep(0.05)
    async with transport.subscribe(f"asya-{NAME}", prefetch=1) as subscription:
        print("working", flush=True)
        while True:
            lease = await subscription.receive()
            await lease.ack(*await asyncio.to_thread(outputs, lease.message.body))


asyncio.run(main())
