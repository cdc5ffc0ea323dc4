"""As whom the service is asked and over what: keys, profiles, roles, web identity, accounts, endpoints, certificates, or none of them."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from brokers.sqs_server import MotoServer, SQSServer
from transports.sqs.front import Front
from transports.sqs.support import opened
from transports.words import receive, sends

from oncue.core.errors import AccessDeniedError, ConnectionLostError, InvalidValueError, MissingExtraError
from oncue.transports import open_transport
from oncue.transports.sqs import open_sqs

SECRET = "hunter2"
ROLE = "arn:aws:iam::123456789012:role/worker"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that says nothing of AWS."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    return monkeypatch


async def test_wrong_credentials_are_denied_without_being_shown(moto_server: MotoServer) -> None:
    server = MotoServer(moto_server.folder / "strict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "0")
        server.start()
    try:
        with pytest.raises(AccessDeniedError, match="denied") as caught:
            await open_sqs(server.url.replace("secret", SECRET))
        assert SECRET not in f"{caught.value}{caught.value.__cause__!r}"
    finally:
        server.close()


async def test_nobody_at_the_address_is_an_error_in_time() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ConnectionLostError):
        await open_sqs(f"sqs://key:{SECRET}@eu-west-1?endpoint=http://127.0.0.1:9&timeout=2")
    assert loop.time() - began < 4


async def test_no_credentials_is_a_fault_of_the_settings(nobody: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValueError, match="no credentials.*AWS_ACCESS_KEY_ID"):
        await open_sqs("sqs://eu-west-1?endpoint=http://127.0.0.1:9&timeout=2")
    nobody.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(InvalidValueError, match="no credentials"):
        await open_sqs("sqs://eu-west-1?endpoint=http://127.0.0.1:9&timeout=2")


async def test_no_region_is_a_fault_of_the_settings(nobody: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValueError, match="region"):
        await open_sqs("sqs://")


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("verb", [["sidecar"], ["queue", "list"], ["doctor"]])
def test_programs_without_credentials_end_with_one_line(verb: list[str]) -> None:
    words = [
        sys.executable,
        "-m",
        "oncue",
        "--transport",
        "sqs://eu-west-1?endpoint=http://127.0.0.1:9&timeout=2",
        *verb,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONCUE_ACTOR_NAME", "greet")
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert said.count("no credentials") == 1, said
    assert "Traceback" not in said
    assert done.returncode == (1 if verb == ["doctor"] else 2), said


@pytest.mark.usefixtures("nobody")
async def test_keys_come_from_the_environment(sqs_server: SQSServer) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        async with Front(sqs_server.endpoint) as front, opened(front.url(credentials="")):
            assert {each.key for each in front.asked} == {"from-environment"}


async def test_keys_and_region_come_from_a_profile(
    nobody: pytest.MonkeyPatch, tmp_path: Path, sqs_server: SQSServer
) -> None:
    (tmp_path / "config").write_text("[profile work]\nregion = eu-north-1\n")
    (tmp_path / "credentials").write_text(f"[work]\naws_access_key_id = of-profile\naws_secret_access_key = {SECRET}\n")
    async with Front(sqs_server.endpoint) as front:
        async with opened(f"sqs://?profile=work&endpoint={front.endpoint}"):
            assert {each.key for each in front.asked} == {"of-profile"}
            assert "/eu-north-1/sqs/" in front.asked[0].headers["Authorization"]
        with pytest.raises(InvalidValueError, match="nothere"):
            await open_sqs(f"sqs://?profile=nothere&endpoint={front.endpoint}")


async def test_a_role_is_taken_on(moto_server: MotoServer) -> None:
    async with Front(moto_server.endpoint) as front:
        url = front.url(f"&role={ROLE}&external=xy&sts={moto_server.endpoint}")
        async with opened(url) as (transport, queue):
            await transport.send(*sends(1, queue))
            assert len(await transport.peek(queue, limit=1)) == 1
        assert all(each.key != "key" and "X-Amz-Security-Token" in each.headers for each in front.asked)


async def test_a_pods_web_identity_becomes_its_role(
    nobody: pytest.MonkeyPatch, tmp_path: Path, moto_server: MotoServer
) -> None:
    (tmp_path / "token").write_text("a-token-of-the-cluster")
    nobody.setenv("AWS_ROLE_ARN", ROLE)
    nobody.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    nobody.setenv("AWS_ENDPOINT_URL_STS", moto_server.endpoint)
    async with Front(moto_server.endpoint) as front, opened(front.url(credentials="")) as (transport, queue):
        await transport.send(*sends(1, queue))
        assert len({each.key for each in front.asked}) == 1
        assert all("X-Amz-Security-Token" in each.headers for each in front.asked)


async def test_a_token_file_that_is_not_there_is_said(
    nobody: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody.setenv("AWS_ROLE_ARN", ROLE)
    nobody.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "nothing"))
    with pytest.raises(InvalidValueError, match="nothing"):
        await open_sqs("sqs://eu-west-1?endpoint=http://127.0.0.1:9&timeout=2")
    assert "Traceback" not in caplog.text


async def test_queues_of_another_account_are_asked_for(sqs_server: SQSServer) -> None:
    async with Front(sqs_server.endpoint) as front, opened(front.url("&account=210987654321")):
        owners = {each.what.get("QueueOwnerAWSAccountId") for each in front.operations("GetQueueUrl")}
        assert owners == {"210987654321"}


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"])
async def test_the_endpoint_of_awss_own_settings_is_used(sqs_server: SQSServer, variable: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, sqs_server.endpoint)
        async with opened("sqs://key:secret@eu-west-1?size=262144") as (transport, queue):
            await transport.send(*sends(1, queue))
            async with transport.subscribe(queue, prefetch=1) as subscription:
                await (await receive(subscription)).ack()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of our own for this machine, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    path, key = folder / "certificate.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {path}"
    subprocess.run(
        shlex.split(f"{command} -addext subjectAltName=DNS:localhost,IP:127.0.0.1"), check=True, capture_output=True
    )
    return path, key


async def test_a_server_is_asked_by_tls_only_if_its_certificate_is_trusted(
    sqs_server: SQSServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with Front(sqs_server.endpoint, tls=context) as front:
        async with opened(front.url(f"&ca={certificate[0]}")) as (transport, queue):
            await transport.send(*sends(1, queue))
        with pytest.raises(ConnectionLostError, match="certificate") as caught:
            await open_sqs(front.url())
        assert "\n" not in str(caught.value)
        with pytest.raises(InvalidValueError, match="nothing.pem"):
            await open_sqs(front.url(f"&ca={tmp_path / 'nothing.pem'}"))


async def test_a_missing_client_is_answered_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("oncue.transports.sqs")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("aiobotocore", "botocore"):
        for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oncue\[sqs\]'"):
        await open_transport("sqs://eu-west-1")
