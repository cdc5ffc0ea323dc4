"""Who may connect: passwords, certificates, and what those are told who may not. One line each, without a secret in it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from brokers.kafka_server import PASSWORD, USER, KafkaServer
from transports.kafka.support import opened
from transports.words import receive, sends

from oncue.core.errors import AccessDeniedError, ConnectionLostError, InvalidValueError, TransportError
from oncue.transports.kafka import open_kafka
from oncue.transports.kafka.address import parse

SECRET = "hunter2"
MECHANISMS = pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])


def sasl(server: KafkaServer, password: str, mechanism: str = "PLAIN", user: str = USER) -> str:
    place = f"127.0.0.1:{server.ports.sasl}"
    return f"kafka://{user}:{password}@{place}?partitions=4&session=4&timeout=3&mechanism={mechanism}"


async def works(url: str) -> None:
    async with opened(url) as transport:
        await transport.send(*sends(1))
        async with transport.subscribe("work", prefetch=1) as subscription:
            await (await receive(subscription)).ack()


@MECHANISMS
async def test_a_password_that_is_right_opens(server: KafkaServer, mechanism: str) -> None:
    await works(sasl(server, PASSWORD, mechanism))


@MECHANISMS
@pytest.mark.parametrize("user", [USER, "nobody"])
async def test_a_password_that_is_wrong_is_denied_without_being_shown(
    server: KafkaServer, mechanism: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, logger="aiokafka"),
        pytest.raises(AccessDeniedError, match="access was denied") as caught,
    ):
        await open_kafka(sasl(server, SECRET, mechanism, user))
    told = f"{caught.value}{caught.value.__cause__!r}"
    assert SECRET not in told + caplog.text
    assert "\n" not in str(caught.value)
    assert "SaslHandShakeRequest" in caplog.text, "the client's words were not heard, or are others now"


async def test_who_gives_no_password_where_one_is_needed_is_not_left_waiting(server: KafkaServer) -> None:
    with pytest.raises(ConnectionLostError, match="does it ask for a password, or for TLS"):
        await open_kafka(f"kafka://127.0.0.1:{server.ports.sasl}?timeout=2")


async def test_who_gives_a_password_where_none_is_asked_for_is_told(server: KafkaServer) -> None:
    with pytest.raises(TransportError) as caught:
        await open_kafka(f"kafka://{USER}:{SECRET}@127.0.0.1:{server.port}?timeout=2")
    assert SECRET not in f"{caught.value}{caught.value.__cause__!r}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
class TestTLS:
    @pytest.fixture
    def secure(self, server: KafkaServer) -> str:
        return f"kafka+ssl://127.0.0.1:{server.ports.tls}?partitions=4&session=4&timeout=3"

    async def test_a_certificate_that_is_trusted_opens(self, server: KafkaServer, secure: str) -> None:
        await works(f"{secure}&cafile={server.certificate}")

    async def test_a_certificate_that_nobody_looks_at_opens(self, secure: str) -> None:
        await works(f"{secure}&verify=none")

    async def test_a_certificate_of_another_authority_is_refused(self, secure: str) -> None:
        with pytest.raises(ConnectionLostError, match="certificate") as caught:
            await open_kafka(secure)
        assert "\n" not in str(caught.value)

    async def test_tls_where_there_is_none_and_none_where_there_is_are_told(
        self, server: KafkaServer, secure: str
    ) -> None:
        with pytest.raises(ConnectionLostError):
            await open_kafka(secure.replace(str(server.ports.tls), str(server.port)))
        with pytest.raises(ConnectionLostError):
            await open_kafka(secure.replace("kafka+ssl", "kafka"))

    def test_a_file_that_is_not_there_is_named(self, secure: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidValueError, match="certificates cannot be used"):
            parse(f"{secure}&cafile={tmp_path / 'none.pem'}")
