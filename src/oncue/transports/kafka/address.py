"""What a URL says: which servers, as whom, and how topics and groups are made there."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from oncue.transports.urls import Reader, hosts, one_of, parameters, seconds, text, wrong

_PORT = 9092
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_TLS = ("cafile", "certfile", "keyfile", "verify")
_LONG = 365 * 86400
_RETRY_PAUSE = 100


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    mechanism: how SASL proves the password.
    partitions, replication: of topics that are made; 0 copies are three, or as many as there are servers.
    group: what the names of consumer groups begin with.
    session: seconds without a sign of life after which a consumer's partitions go to others.
    drain: seconds that work in hand is given to finish before partitions are shared out anew.
    timeout: seconds that the servers may take to answer.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: Mapping[str, str] | None = None
    user: str | None = None
    password: str = ""
    mechanism: str = "PLAIN"
    partitions: int = 8
    replication: int = 0
    group: str = "oncue"
    session: float = 30.0
    drain: float = 0.2
    timeout: float = 10.0
    mode: str = "group"

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        places = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{'kafka' if self.tls is None else 'kafka+ssl'}://{places}"

    @property
    def heartbeat(self) -> int:
        """Milliseconds between two signs of life, by which one also hears that partitions are shared out anew."""
        return max(100, min(3000, round(self.session * 100)))

    @property
    def longest_poll(self) -> int:
        """Milliseconds that a server may hold back its answer where there is nothing new."""
        return min(5000, round(self.timeout * 500))

    def client(self) -> dict[str, Any]:
        """What every part of the client has to be told."""
        secure = self.tls is not None
        options: dict[str, Any] = {
            "bootstrap_servers": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts],
            "client_id": "oncue",
            "request_timeout_ms": round(self.timeout * 1000),
            "retry_backoff_ms": _RETRY_PAUSE,
            "security_protocol": ("SASL_" if self.user else "") + ("SSL" if secure else "PLAINTEXT"),
        }
        if self.tls is not None:
            options["ssl_context"] = _context(self.tls)
        if self.user:
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
            }
        return options

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(url: str) -> Address:
    """Read `kafka://[user:password@]host[:port][,host…][?partitions=…]`; raise `InvalidValueError`."""
    parts = urlsplit(url)
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    if parts.path not in {"", "/"}:
        raise wrong(url, f"expected nothing after the hosts but settings, not {parts.path!r}")
    options = parameters(url, parts.query, _READERS)
    secure = {name: options.pop(name) for name in _TLS if name in options}
    tls = parts.scheme.lower() == "kafka+ssl"
    if secure and not tls:
        raise wrong(url, f"{min(secure)} needs 'kafka+ssl://'")
    if "mechanism" in options and not user:
        raise wrong(url, "mechanism needs a user and a password before the host")
    if user:
        options |= {"user": unquote(user), "password": unquote(password)}
    address = Address(hosts=hosts(url, places, _PORT), tls=secure if tls else None, **options)
    if address.tls is not None:
        try:
            _context(address.tls)
        except (OSError, ValueError) as error:
            raise wrong(url, f"its certificates cannot be used: {error}") from None
    return address


def _context(tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.get("cafile"))
    if tls.get("verify") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "certfile" in tls:
        context.load_cert_chain(tls["certfile"], tls.get("keyfile"))
    return context


def _whole(most: int) -> Reader:
    def read(value: str) -> int:
        if not (value.isascii() and value.isdecimal()) or not 1 <= int(value) <= most:
            raise ValueError(f"expected a whole number from 1 to {most}")
        return int(value)

    return read


def _prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError("expected 1 to 64 letters, digits, '.', '-' or '_'")
    return value


def _mode(value: str) -> str:
    if value == "share":
        raise ValueError(
            "share groups cannot be used yet: their locks have to be renewed while a handler works, which no client for Python "
            "can do; leave it out for consumer groups"
        )
    return one_of("group")(value)  # type: ignore[no-any-return]


_READERS: Mapping[str, Reader] = {
    "mechanism": one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
    "partitions": _whole(10_000),
    "replication": _whole(100),
    "group": _prefix,
    "session": seconds(_LONG),
    "drain": seconds(_LONG),
    "timeout": seconds(_LONG),
    "mode": _mode,
    "cafile": text,
    "certfile": text,
    "keyfile": text,
    "verify": one_of("required", "none"),
}
