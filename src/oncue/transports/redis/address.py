"""What a URL says: which servers, as whom, and what all keys begin with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from oncue.transports.urls import Reader, hosts, one_of, parameters, seconds, text, wrong

_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_PORT, _SENTINEL_PORT = 6379, 26379


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    tag: what stands in braces before each key, so that all of them lie on one node of a cluster.
    timeout: seconds that the server may take to answer.
    sentinel: the name that the hosts, which are sentinels then, know the primary by.
    replicas: how many replicas have to have a message before it counts as stored.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: Mapping[str, Any] | None = None
    username: str | None = None
    password: str | None = None
    database: int = 0
    tag: str = "oncue"
    timeout: float = 10.0
    sentinel: str | None = None
    sentinel_password: str | None = None
    replicas: int = 0

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{'redis' if self.tls is None else 'rediss'}://{hosts}/{self.database}"

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(url: str) -> Address:
    """Read `redis://[user:password@]host[:port][,host…][/database][?tag=…]`; raise `InvalidValueError`."""
    parts = urlsplit(url)
    credentials, _, places = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    options = parameters(url, parts.query, _READERS)
    port = _SENTINEL_PORT if "sentinel" in options else _PORT
    secure = {key: value for key, value in options.items() if key.startswith("ssl_")}
    if secure and parts.scheme.lower() != "rediss":
        raise wrong(url, f"{min(secure)} needs 'rediss://'")
    database = parts.path.removeprefix("/") or "0"
    if not database.isdecimal():
        raise wrong(url, f"expected the number of a database after the host, not {database!r}")
    return Address(
        hosts=hosts(url, places, port),
        tls=secure if parts.scheme.lower() == "rediss" else None,
        username=unquote(username) or None,
        password=unquote(password) or None,
        database=int(database),
        **{key: value for key, value in options.items() if key not in secure},
    )


def _tag(value: str) -> str:
    if not _TAG.fullmatch(value):
        raise ValueError("expected up to 64 letters, digits, '.', '-' or '_'")
    return value


def _count(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("expected a number")
    return int(value)


def _flag(value: str) -> bool:
    if value.lower() not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("expected true or false")
    return value.lower() in {"true", "1", "yes"}


_READERS: Mapping[str, Reader] = {
    "tag": _tag,
    "timeout": seconds(3600),
    "sentinel": text,
    "sentinel_password": text,
    "replicas": _count,
    "ssl_ca_certs": text,
    "ssl_certfile": text,
    "ssl_keyfile": text,
    "ssl_check_hostname": _flag,
    "ssl_cert_reqs": one_of("required", "none"),
}
