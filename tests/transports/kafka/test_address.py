"""URLs of Kafka: what they say, what is refused, and that no password gets out."""

from __future__ import annotations

import pytest

from oncue.core.errors import AccessDeniedError, ConnectionLostError, InvalidValueError
from oncue.transports.kafka import open_kafka
from oncue.transports.kafka.address import parse


def test_a_url_names_servers_and_settings() -> None:
    address = parse("kafka://one:1,two,[::1]:3?partitions=24&replication=2&group=team&session=12&drain=1&timeout=3")
    assert address.hosts == (("one", 1), ("two", 9092), ("::1", 3))
    assert (address.partitions, address.replication, address.group) == (24, 2, "team")
    assert (address.session, address.drain, address.timeout) == (12.0, 1.0, 3.0)
    client = address.client()
    assert client["bootstrap_servers"] == ["one:1", "two:9092", "[::1]:3"]
    assert client["security_protocol"] == "PLAINTEXT"


def test_a_user_means_sasl_and_the_scheme_means_tls() -> None:
    client = parse("kafka+ssl://me:p%40ss@one?mechanism=SCRAM-SHA-512&verify=none").client()
    assert client["security_protocol"] == "SASL_SSL"
    assert (client["sasl_mechanism"], client["sasl_plain_username"]) == ("SCRAM-SHA-512", "me")
    assert client["sasl_plain_password"] == "p@ss"
    assert parse("kafka://me:pass@one").client()["security_protocol"] == "SASL_PLAINTEXT"


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("one/path", "expected nothing after the hosts"),
        ("one?colour=red", "unknown parameter 'colour'"),
        ("one?partitions=0", "partitions"),
        ("one?partitions=²", "partitions"),
        ("one?replication=-1", "replication"),
        ("one?group=a b", "group"),
        ("one?session=0", "session"),
        ("one?mechanism=GSSAPI", "mechanism"),
        ("one?mechanism=PLAIN", "needs a user"),
        ("one?cafile=/x", "needs 'kafka\\+ssl://'"),
        ("one?mode=share", "share groups cannot be used yet"),
        ("one:port", "expected a host"),
    ],
)
def test_what_makes_no_sense_is_refused(rest: str, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason):
        parse(f"kafka://{rest}")


def test_no_password_is_shown() -> None:
    address = parse("kafka://me:sesame@one")
    assert "sesame" not in repr(address) + address.shown
    with pytest.raises(InvalidValueError) as caught:
        parse("kafka://me:sesame@one?colour=red")
    assert "sesame" not in str(caught.value)


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises((ConnectionLostError, AccessDeniedError)) as caught:
        await open_kafka("kafka://me:sesame@127.0.0.1:1?timeout=1")
    assert "sesame" not in str(caught.value)
