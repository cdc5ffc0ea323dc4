"""Looks at the server's own settings: which of them can cost messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oncue.transports.examination import Remark

SECTIONS = (b"server", b"persistence", b"memory", b"replication")
"""What `INFO` is asked for. Older servers take one section at a time."""

_NO_RIGHT = "not shown to this user: the right to CONFIG GET is missing"


def read_info(text: bytes) -> dict[str, str]:
    """The fields of an answer to `INFO`."""
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def remarks(info: Mapping[str, str], fsync: str | None) -> Sequence[Remark]:
    """What `info` means for messages; `fsync` is the setting of that name, or None if this user may not see it. Pure."""
    found = [_server(info)]
    if "role" in info:
        found.append(_role(info))
    if "aof_enabled" in info:
        found.append(_persistence(info, fsync))
    if "maxmemory_policy" in info:
        found.append(_memory(info))
    return found


def _server(info: Mapping[str, str]) -> Remark:
    if "valkey_version" in info:
        return Remark("server", "ok", f"Valkey {info['valkey_version']}, {info.get('redis_mode', 'standalone')}")
    return Remark("server", "ok", f"Redis {info.get('redis_version', '?')}, {info.get('redis_mode', 'standalone')}")


def _role(info: Mapping[str, str]) -> Remark:
    if info["role"] != "master":
        return Remark("role", "bad", "a replica, which takes no messages: connect to its primary")
    replicas = info.get("connected_slaves", "0")
    if replicas == "0":
        return Remark("role", "ok", "primary, without replicas")
    text = f"primary; its replicas ({replicas}) may lack the newest messages when it fails: see `replicas=` for the URL"
    return Remark("role", "ok", text)


def _persistence(info: Mapping[str, str], fsync: str | None) -> Remark:
    name = "persistence"
    if info.get("aof_last_write_status", "ok") != "ok":
        return Remark(name, "bad", "the append-only file cannot be written: look at the server's disk and log")
    if info["aof_enabled"] != "1":
        return Remark(name, "bad", "appendonly is off: a restart loses all messages since the last snapshot")
    if fsync is None:
        return Remark(name, "note", f"appendonly is on; appendfsync is {_NO_RIGHT}")
    if fsync == "always":
        return Remark(name, "ok", "appendonly yes, appendfsync always: what is confirmed is on disk")
    lost = "a second" if fsync == "everysec" else "half a minute or more"
    return Remark(
        name, "note", f"appendonly yes, appendfsync {fsync}: the loss of power costs up to {lost} of messages"
    )


def _memory(info: Mapping[str, str]) -> Remark:
    policy, most, used = info["maxmemory_policy"], int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    share = f"{used / 2**20:.0f} MiB used" + (f" of {most / 2**20:.0f}" if most else ", no limit set")
    if policy == "noeviction":
        full = most and used > 0.9 * most
        return Remark("memory", "note" if full else "ok", f"noeviction, {share}" + (": nearly full" if full else ""))
    text = f"maxmemory-policy is {policy}, {share}: the server may drop queues when memory is short; set noeviction"
    return Remark("memory", "bad" if most else "note", text)
