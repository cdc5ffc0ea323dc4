"""What a URL says: which servers, as whom, and how queues are made there."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from oncue.transports.rabbitmq.amqp import Endpoint
from oncue.transports.urls import Reader, hosts, one_of, parameters, seconds, text, wrong

ASYA = "asya"
"""The exchange that Asya's gateways and sidecars publish to, unless told otherwise."""
_PORT, _TLS_PORT = 5672, 5671
_MARGIN = 0.95
"""The server looks for messages that are held too long now and then, and its clock began before ours."""
_EXCHANGE = re.compile(r"[A-Za-z0-9_.:@#,/+ -]{0,127}", re.ASCII)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    heartbeat: seconds after two of which a connection is given up when nothing is heard.
    timeout: seconds that the server may take to answer.
    queues: the type of queues that are made, `quorum` or `classic`; None is quorum, and what exists is taken as it is.
    exchange: queues are bound to it; None is Asya's, if this user may use it, and an empty one is none.
    consumer_timeout: seconds after which the server takes a message from whoever holds it.
    management: the URL of the server's management, which knows how many messages are held.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: Mapping[str, str] | None = None
    user: str = "guest"
    password: str = "guest"  # noqa: S105  # everybody knows it
    vhost: str = "/"
    heartbeat: int = 10
    timeout: float = 10.0
    queues: str | None = None
    exchange: str | None = None
    consumer_timeout: float = 1800.0
    management: str | None = None

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{'amqp' if self.tls is None else 'amqps'}://{hosts}/{self.vhost.removeprefix('/')}"

    @property
    def longest_hold(self) -> float:
        """Seconds that a message can be held in all."""
        return self.consumer_timeout * _MARGIN

    def endpoints(self, name: str) -> list[Endpoint]:
        """What to connect to, in turn; each has its share of the time."""
        return [
            Endpoint(
                host=host,
                port=port,
                user=self.user,
                password=self.password,
                vhost=self.vhost,
                ssl=None if self.tls is None else _context(self.tls),
                heartbeat=self.heartbeat,
                timeout=self.timeout / len(self.hosts),
                name=name,
            )
            for host, port in self.hosts
        ]

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(url: str) -> Address:
    """Read `amqp://[user:password@]host[:port][,host…][/vhost][?queues=…]`; raise `InvalidValueError`."""
    parts = urlsplit(url)
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options = parameters(url, parts.query, _READERS)
    secure = {name: options.pop(name) for name in _TLS if name in options}
    if secure and parts.scheme.lower() != "amqps":
        raise wrong(url, f"{min(secure)} needs 'amqps://'")
    port = _TLS_PORT if parts.scheme.lower() == "amqps" else _PORT
    vhost = parts.path.removeprefix("/")
    if "/" in vhost:
        raise wrong(url, f"expected one virtual host after the host, with '/' in it as %2F, not {vhost!r}")
    if user:
        options |= {"user": unquote(user), "password": unquote(password)}
    address = Address(
        hosts=hosts(url, places, port),
        tls=secure if parts.scheme.lower() == "amqps" else None,
        vhost=unquote(vhost) or "/",
        **options,
    )
    if address.tls is not None:
        try:
            _context(address.tls)
        except (OSError, ValueError) as error:
            raise wrong(url, f"its certificates cannot be used: {error}") from None
    return address


def _context(tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.get("cacertfile"))
    if tls.get("verify") == "verify_none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "certfile" in tls:
        context.load_cert_chain(tls["certfile"], tls.get("keyfile"))
    return context


def _whole_seconds(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 3600:
        raise ValueError("expected whole seconds, from 1 to 3600")
    return int(value)


def _exchange(value: str) -> str:
    if not _EXCHANGE.fullmatch(value) or value.startswith("amq."):
        raise ValueError("expected the name of an exchange, or nothing for none")
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected a URL such as http://localhost:15672")
    _ = parts.port  # a ValueError, where it is no number
    return value


_TLS = ("cacertfile", "certfile", "keyfile", "verify")
_READERS: Mapping[str, Reader] = {
    "heartbeat": _whole_seconds,
    "timeout": seconds(365 * 86400),
    "queues": one_of("quorum", "classic"),
    "exchange": _exchange,
    "consumer_timeout": seconds(365 * 86400),
    "management": _http_url,
    "cacertfile": text,
    "certfile": text,
    "keyfile": text,
    "verify": one_of("verify_peer", "verify_none"),
}
