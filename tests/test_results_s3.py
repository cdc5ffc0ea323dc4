"""Results in an S3-compatible bucket, on a server that runs beside the test."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from oncue.core.errors import AccessDeniedError, ConnectionLostError, InvalidValueError, TransportClosedError
from oncue.core.failure import Failure
from oncue.core.message import Message
from oncue.core.outcome import Done, Retry
from oncue.ends import KeepResult
from oncue.results import Result, ResultStore, open_results

NOW = datetime(2026, 2, 3, 4, 5, 6, 789000, UTC)
DONE = b'{"id":"a","route":{"actors":["resize"],"current":1},"payload":1}'
FAILED = b'{"id":"b","parent_id":"a","route":{"actors":["resize"],"current":0},"payload":{"error":"processing_error","details":{"message":"no","type":"ValueError","traceback":"t"}}}'  # fmt: skip


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of a server with no buckets."""
    if not port:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
    words = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "server.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as child:
        try:
            _answers(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            child.kill()


def _answers(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def store_at(endpoint: str, bucket: str, more: str = "") -> ResultStore:
    return open_results(f"s3://{bucket}?endpoint={endpoint}{more}", 3600.0)


def result(id: str = "a", ago: float = 0.0, *, failed: bool = False) -> Result:
    body = (FAILED if failed else DONE).replace(b'"a"' if not failed else b'"b"', json.dumps(id).encode(), 1)
    failure = Failure("processing_error", "ValueError", "no", "t") if failed else None
    status = "failed" if failed else "succeeded"
    moment = NOW - timedelta(seconds=ago)
    parent = "a" if failed else None
    return Result(id=id, status=status, actor="resize", finished_at=moment, envelope=body, parent_id=parent, failure=failure)  # fmt: skip


def plain(found: Result | None) -> Result | None:
    """A result without the spaces that its envelope is written with."""
    import msgspec

    return found and msgspec.structs.replace(found, envelope=msgspec.json.format(found.envelope, indent=-1))


async def test_results_have_asyas_keys_and_bodies_and_are_found_as_they_were_put(endpoint: str) -> None:
    import botocore.session

    store = store_at(endpoint, "one")
    await store.put(result("a"))
    await store.put(result("b/1", failed=True))
    assert plain(await store.get("a")) == result("a")
    assert plain(await store.get("b/1")) == result("b/1", failed=True)
    assert await store.get("c") is None
    client = botocore.session.Session().create_client(
        "s3", "us-east-1", endpoint_url=endpoint, aws_access_key_id="x", aws_secret_access_key="y"
    )
    found = sorted(each["Key"] for each in client.list_objects_v2(Bucket="one")["Contents"])
    assert found == [
        "error-asya/2026-02-03T04:05:06.789000Z/resize/b/1.json",
        "happy-asya/2026-02-03T04:05:06.789000Z/resize/a.json",
    ]
    body = client.get_object(Bucket="one", Key=found[1])["Body"].read()
    assert body.decode() == json.dumps(json.loads(DONE), indent=2)
    client.close()
    await store.close()
    await store.close()
    with pytest.raises(TransportClosedError):
        await store.get("a")


async def test_a_result_that_is_put_again_is_there_once(endpoint: str) -> None:
    store = store_at(endpoint, "again")
    for _ in range(2):
        await store.put(result("a"))
    assert len(await store.list()) == 1
    await store.close()


async def test_prefixes_can_be_chosen_and_other_objects_are_left_alone(endpoint: str) -> None:
    store = store_at(endpoint, "shared/team", "&succeeded=ok/&failed=bad/")
    await store.put(result("a"))
    other = open_results(f"s3://shared?endpoint={endpoint}&succeeded=team/ok/&failed=x/", 3600.0)
    assert plain(await other.get("a")) == result("a")
    whole = open_results(f"s3://shared?endpoint={endpoint}&succeeded=team/", 3600.0)
    assert await whole.list() == []
    for each in (store, other, whole):
        await each.close()


async def test_the_list_has_the_newest_first_and_can_be_narrowed_and_old_ones_purged(endpoint: str) -> None:
    store = store_at(endpoint, "many")
    assert await store.list() == []
    for number in range(6):
        await store.put(result(f"r{number}", number, failed=bool(number % 2)))
    assert [each.id for each in await store.list(limit=2)] == ["r0", "r1"]
    assert [each.id for each in await store.list(status="failed")] == ["r1", "r3", "r5"]
    assert [each.id for each in await store.list(before=NOW - timedelta(seconds=3))] == ["r4", "r5"]
    assert await store.purge() == 6
    assert await store.list() == []
    await store.close()


async def test_an_id_too_long_for_a_key_is_found_all_the_same(endpoint: str) -> None:
    store = store_at(endpoint, "long")
    id = "é" * 2000
    await store.put(result(id))
    assert plain(await store.get(id)) == result(id)
    await store.close()


async def test_while_the_store_is_away_results_wait_and_none_is_lost(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    store = store_at(f"http://127.0.0.1:{port}", "later")
    with pytest.raises(ConnectionLostError, match="bucket later"):
        await store.put(result("a"))
    keep = KeepResult(store, "succeeded")
    assert isinstance(await keep(Message(DONE, "a"), 1), Retry)
    with serving(tmp_path, port):
        assert await keep(Message(DONE, "a"), 2) == Done()
        assert (await store.get("a")) is not None
    await store.close()


async def test_credentials_that_are_missing_are_told(tmp_path: Path) -> None:
    store = open_results("s3://bucket?region=eu-central-1", 3600.0)
    with pytest.raises(AccessDeniedError, match="credentials"):
        await asyncio.wait_for(store.put(result("a")), 30)
    await store.close()


@pytest.mark.parametrize(
    "url", ["s3://", "s3:bucket", "s3://b?colour=red", "s3://key:secret@bucket", "s3://bucket#x", "s4://bucket"]
)
def test_other_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        open_results(url, 60.0)
    assert "secret" not in str(refused.value)
