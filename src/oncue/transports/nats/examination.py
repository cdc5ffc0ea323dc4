"""Looks at the server: which it is, when it writes to disk what it says it has, and which limits drop messages."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from oncue.core.redact import redact_url
from oncue.transports.examination import Remark
from oncue.transports.nats.address import Address
from oncue.transports.nats.jetstream import StreamInfo
from oncue.transports.nats.queues import version_of

_OLDEST, _SCHEDULES = (2, 9), (2, 12)
_COPIES = 3
_MOST = 10 * 1024 * 1024
"""Bytes of an answer of the monitoring that are read."""
_NANOSECONDS = 1e9


async def examine(
    info: Mapping[str, Any], account: Mapping[str, Any], streams: Sequence[StreamInfo], address: Address
) -> Sequence[Remark]:
    """What the server's introduction, the account, the streams of queues and the monitoring tell."""
    found = [_server(info), _delays(info), _room(account), await _disk(address)]
    found += [remark for stream in streams for remark in _stream(stream.config, clustered=bool(info.get("cluster")))]
    return found


def _server(info: Mapping[str, Any]) -> Remark:
    version = str(info.get("version", "?"))
    if version_of(info) < _OLDEST:
        return Remark("server", "bad", f"NATS {version}: {'.'.join(map(str, _OLDEST))} or newer is needed")
    return Remark("server", "ok", f"NATS {version}")


def _delays(info: Mapping[str, Any]) -> Remark:
    if version_of(info) < _SCHEDULES:
        text = "moved by whoever subscribes to a queue: from 2.12 on the server publishes by itself what is due"
        return Remark("delayed messages", "note", text)
    return Remark("delayed messages", "ok", "published by the server")


def _room(account: Mapping[str, Any]) -> Remark:
    limits = account.get("limits") or {}
    most, used = int(limits.get("max_storage", -1)), int(account.get("storage", 0))
    if most > 0:
        state = f"{used / 1e6:.0f} of {most / 1e6:.0f} MB are used"
        return Remark("room", "note" if used > 0.8 * most else "ok", state)
    return Remark("room", "ok", f"{used / 1e6:.0f} MB are used, and the account has no limit")


async def _disk(address: Address) -> Remark:
    name = "acknowledged"
    if address.monitoring is None:
        text = (
            "when the server writes to disk what it says it has cannot be seen: see `monitoring=` for the URL. Unless "
            "`sync_interval` is `always`, a power failure loses what it was sent in the last two minutes"
        )
        return Remark(name, "note", text)
    try:
        found = await asyncio.to_thread(_get, f"{address.monitoring.rstrip('/')}/jsz?config=true", address.timeout)
    except (OSError, ValueError) as error:
        return Remark(name, "bad", f"the monitoring at {redact_url(address.monitoring)} cannot be asked: {error}")
    config = found.get("config") or {}
    if config.get("sync_always"):
        return Remark(name, "ok", "what the server says it has is on disk")
    seconds = float(config.get("sync_interval") or 120 * _NANOSECONDS) / _NANOSECONDS
    text = (
        f"what the server says it has is on disk {seconds:g} s later at most: a power failure loses what was sent in between. "
        "Set `sync_interval: always` in its `jetstream` block"
    )
    return Remark(name, "bad", text)


def _get(url: str, timeout: float) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310  # http or https, by the address
        found: dict[str, Any] = json.loads(answer.read(_MOST))
    return found


def _stream(config: Mapping[str, Any], *, clustered: bool) -> Sequence[Remark]:
    """What a stream does that its queue should not."""
    name = f"stream {config['name']}"
    found = []
    if clustered and config.get("num_replicas", 1) < _COPIES:
        text = f"{config.get('num_replicas', 1)} of the cluster's servers has its messages: `replicas=3` in the URL makes streams "
        found.append(
            Remark(
                name, "note", text + "that outlive the loss of one, `nats stream edit --replicas 3` changes this one"
            )
        )
    if config.get("storage") != "file":
        found.append(Remark(name, "bad", "keeps its messages in memory: they are gone when the server stops"))
    if config.get("persist_mode") == "async":
        found.append(
            Remark(name, "bad", "is written later than its server says: a killed one loses what it has confirmed")
        )
    if config.get("max_age"):
        found.append(
            Remark(name, "bad", f"drops messages after {config['max_age'] / _NANOSECONDS:g} s, also delayed ones")
        )
    limits = [each for each in ("max_msgs", "max_bytes", "max_msgs_per_subject") if config.get(each, -1) > 0]
    if limits and config.get("discard") != "new":
        found.append(Remark(name, "bad", f"drops the oldest messages when there are too many: {', '.join(limits)}"))
    return found
