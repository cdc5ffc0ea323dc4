"""What a URL says: which servers, as whom, and how queues are made there."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from oncue.core.errors import MissingExtraError
from oncue.transports.nats.core import Endpoint, Login
from oncue.transports.urls import Reader, hosts, one_of, parameters, seconds, text, wrong

_PORT = 4222
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
_SUBJECT = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}", re.ASCII)
_MOST_REPLICAS = 5


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    prefix: what the names of all streams and subjects begin with.
    domain: the JetStream domain, where there are several.
    inbox: what the subjects of answers begin with; a user's permissions may ask for one of its own.
    replicas: so many servers keep each message, for streams that are made; those that are there stay as they are.
    duplicates: seconds within which a message that is sent once more is known, for streams that are made.
    timeout: seconds that the server may take to answer.
    monitoring: the URL of the server's monitoring, which tells how it writes to disk.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: Mapping[str, str] | None = None
    handshake_first: bool = False
    login: Login = Login()
    prefix: str = "oncue"
    domain: str | None = None
    inbox: str = "_INBOX"
    replicas: int = 1
    duplicates: float = 120.0
    timeout: float = 10.0
    monitoring: str | None = None

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{'nats' if self.tls is None else 'tls'}://{hosts}"

    @property
    def api(self) -> str:
        """What the subjects begin with that JetStream listens to."""
        return "$JS.API" if self.domain is None else f"$JS.{self.domain}.API"

    def endpoints(self) -> list[Endpoint]:
        """What to connect to, in turn; each has its share of the time to be reached."""
        return [
            Endpoint(
                host=host,
                port=port,
                login=self.login,
                ssl=None if self.tls is None else _context(self.tls),
                handshake_first=self.handshake_first,
                inbox=self.inbox,
                opening=self.timeout / len(self.hosts),
                timeout=self.timeout,
            )
            for host, port in self.hosts
        ]

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(url: str) -> Address:
    """Read `nats://[user:password@|token@]host[:port][,host…][?credentials=…]`, or `tls://…`.

    Raise `InvalidValueError`, or `MissingExtraError` where keys are used and what signs with them is not installed.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if parts.path.strip("/"):
        raise wrong(url, f"expected nothing behind the hosts but parameters, not {parts.path!r}")
    options = parameters(url, parts.query, _READERS)
    secure = {name: options.pop(name) for name in _TLS if name in options}
    handshake_first = options.pop("handshake_first", "false") == "true"
    if (secure or handshake_first) and scheme != "tls":
        raise wrong(url, f"{min(secure, default='handshake_first')} needs 'tls://'")
    credentials, _, places = parts.netloc.rpartition("@")
    address = Address(
        hosts=hosts(url, places, _PORT),
        tls=secure if scheme == "tls" else None,
        handshake_first=handshake_first,
        login=_login(url, scheme, credentials, options.pop("credentials", None), options.pop("nkey", None)),
        **options,
    )
    if address.tls is not None:
        try:
            _context(address.tls)
        except (OSError, ValueError) as error:
            raise wrong(url, f"its certificates cannot be used: {error}") from None
    return address


def _login(url: str, scheme: str, given: str, credentials: str | None, nkey: str | None) -> Login:
    if sum((bool(given), credentials is not None, nkey is not None)) > 1:
        raise wrong(url, "expected one of a user, 'credentials' and 'nkey'")
    user, colon, password = given.partition(":")
    if colon:
        return Login(user=unquote(user), password=unquote(password))
    if given:
        return Login(token=unquote(given))
    login = Login(credentials=credentials, nkey=nkey)
    try:
        login.check()
    except ImportError as error:
        raise MissingExtraError(scheme, "nats") from error
    except (OSError, ValueError) as error:
        raise wrong(url, f"its key cannot be used: {error}") from None
    return login


def _context(tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.get("cacertfile"))
    if tls.get("verify") == "verify_none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "certfile" in tls:
        context.load_cert_chain(tls["certfile"], tls.get("keyfile"))
    return context


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError("expected up to 64 letters, digits, '-' or '_'")
    return value


def _prefix(value: str) -> str:
    """Without a hyphen, so that no two prefixes make the same name of two queues."""
    if not _PREFIX.fullmatch(value):
        raise ValueError("expected up to 64 letters, digits or '_'")
    return value


def _subject(value: str) -> str:
    if not _SUBJECT.fullmatch(value):
        raise ValueError("expected words of letters, digits, '-' or '_' with dots between them")
    return value


def _replicas(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= _MOST_REPLICAS:
        raise ValueError(f"expected a number from 1 to {_MOST_REPLICAS}")
    return int(value)


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected a URL such as http://localhost:8222")
    _ = parts.port  # a ValueError, where it is no number
    return value


_TLS = ("cacertfile", "certfile", "keyfile", "verify")
_READERS: Mapping[str, Reader] = {
    "prefix": _prefix,
    "domain": _word,
    "inbox": _subject,
    "replicas": _replicas,
    "duplicates": seconds(7 * 86400),
    "timeout": seconds(3600),
    "monitoring": _http_url,
    "credentials": text,
    "nkey": text,
    "handshake_first": one_of("true", "false"),
    "cacertfile": text,
    "certfile": text,
    "keyfile": text,
    "verify": one_of("verify_peer", "verify_none"),
}
