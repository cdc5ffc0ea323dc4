"""Results as objects in an S3-compatible bucket, under the keys that Asya's end actors give them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from oncue.core.envelope import Envelope, decode_envelope
from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    InvalidEnvelopeError,
    InvalidValueError,
    MissingExtraError,
    TransportClosedError,
    TransportError,
)
from oncue.core.failure import PROCESSING_ERROR, Failure
from oncue.core.redact import redact_url
from oncue.results import STATUSES, Result, Status

_PARAMETERS = frozenset({"endpoint", "region", *STATUSES})
_PREFIXES: dict[Status, str] = {"succeeded": "happy-asya/", "failed": "error-asya/"}
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_LONGEST_KEY = 1000
_AT_ONCE = 1000
_REFUSED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "Forbidden", "403"}
)

_T = TypeVar("_T")


class Place(msgspec.Struct, frozen=True):
    """What a URL says: `s3://BUCKET/PREFIX?endpoint=URL&region=…&succeeded=PREFIX&failed=PREFIX`, all but the bucket optional."""

    bucket: str
    prefixes: dict[Status, str]
    endpoint: str = ""
    region: str = ""


def place_of(url: str) -> Place:
    """Read such a URL; raise `InvalidValueError` for another."""
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query))
    strange = sorted(given.keys() - _PARAMETERS)
    if parts.scheme.lower() != "s3" or not parts.netloc or "@" in parts.netloc or parts.fragment or strange:
        why = f"unknown parameter {strange[0]!r}: " if strange else ""
        raise InvalidValueError(
            f"{redact_url(url)!r}: {why}expected 's3://bucket/prefix', perhaps with '?endpoint=https://…'; keys come from "
            "the environment"
        )
    prefix = unquote(parts.path).strip("/")
    before = f"{prefix}/" if prefix else ""
    prefixes = {status: before + given.get(status, _PREFIXES[status]) for status in STATUSES}
    return Place(parts.netloc, prefixes, given.get("endpoint", ""), given.get("region", ""))


class _Key(msgspec.Struct, frozen=True):
    """Where a result is, and what its key says of it. `moment` is a text that sorts as moments do."""

    key: str
    status: Status
    moment: str
    actor: str
    id: str


class S3Results:
    """A `ResultStore` in a bucket, which is made when it is missing.

    An object's key is `<prefix><time>/<actor>/<id>.json`, its body the whole envelope. What is asked for by id is looked for
    among all keys. Nothing is dropped unless `purge` is called: how long objects stay is the bucket's own rule. Credentials
    are those of the AWS tools, or `ASYA_S3_ACCESS_KEY` and `ASYA_S3_SECRET_KEY`.
    """

    def __init__(self, url: str, retention: float) -> None:
        self._place = place_of(url)
        self._retention = retention
        self._lock = threading.Lock()
        self._client: Any = None
        self._closed = False

    async def put(self, result: Result) -> None:
        key = self._key(result)
        body = _indented(result.envelope)
        await self._run(lambda client: self._put(client, key, body))

    async def get(self, id: str) -> Result | None:
        def find(client: Any) -> Result | None:
            found = [key for status in STATUSES for key in self._keys(client, status) if key.id in _names(id)]
            return self._read(client, max(found, key=lambda key: key.moment)) if found else None

        return await self._run(find)

    async def list(
        self, *, status: Status | None = None, limit: int = 100, before: datetime | None = None
    ) -> Sequence[Result]:
        latest = None if before is None else before.astimezone(UTC).strftime(_TIME)

        def newest(client: Any) -> Sequence[Result]:
            keys: list[_Key] = []
            for each in STATUSES if status is None else [status]:
                last: deque[_Key] = deque(maxlen=limit)
                last.extend(key for key in self._keys(client, each) if latest is None or key.moment < latest)
                keys += last
            keys.sort(key=lambda key: key.moment, reverse=True)
            return [self._read(client, key) for key in keys[:limit]]

        return await self._run(newest)

    async def purge(self) -> int:
        oldest = (datetime.now(UTC) - timedelta(seconds=self._retention)).strftime(_TIME)

        def drop(client: Any) -> int:
            old = [key.key for status in STATUSES for key in self._keys(client, status) if key.moment < oldest]
            for start in range(0, len(old), _AT_ONCE):
                objects = [{"Key": key} for key in old[start : start + _AT_ONCE]]
                client.delete_objects(Bucket=self._place.bucket, Delete={"Objects": objects, "Quiet": True})
            return len(old)

        return await self._run(drop)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    # In threads

    async def _run(self, work: Callable[[Any], _T]) -> _T:
        return await asyncio.to_thread(self._work, work)

    def _work(self, work: Callable[[Any], _T]) -> _T:
        from botocore.exceptions import BotoCoreError, ClientError

        with self._lock:
            if self._closed:
                raise TransportClosedError
            if self._client is None:
                self._client = _connect(self._place)
            client = self._client
        try:
            return work(client)
        except (BotoCoreError, ClientError) as error:
            raise self._mapped(error) from error

    def _put(self, client: Any, key: str, body: bytes) -> None:
        kept = {"Bucket": self._place.bucket, "Key": key, "Body": body, "ContentType": "application/json"}
        try:
            client.put_object(**kept)
        except client.exceptions.NoSuchBucket:
            self._make_bucket(client)
            client.put_object(**kept)

    def _make_bucket(self, client: Any) -> None:
        region = client.meta.region_name
        options = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            client.create_bucket(Bucket=self._place.bucket, **options)
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            return

    def _keys(self, client: Any, status: Status) -> Iterator[_Key]:
        """The keys of results of this status, oldest first."""
        prefix = self._place.prefixes[status]
        pages = client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self._place.bucket, Prefix=prefix):
                for each in page.get("Contents", ()):
                    found = _read_key(each["Key"], prefix, status)
                    if found is not None:
                        yield found
        except client.exceptions.NoSuchBucket:
            return

    def _read(self, client: Any, key: _Key) -> Result:
        body: bytes = client.get_object(Bucket=self._place.bucket, Key=key.key)["Body"].read()
        try:
            envelope: Envelope | None = decode_envelope(body)
        except InvalidEnvelopeError:
            envelope = None
        return Result(
            id=key.id if envelope is None else envelope.id,
            status=key.status,
            actor=key.actor,
            finished_at=datetime.strptime(key.moment, _TIME).replace(tzinfo=UTC),
            envelope=body,
            parent_id=None if envelope is None else envelope.parent_id,
            failure=None if key.status == "succeeded" else _failure(envelope),
        )

    def _key(self, result: Result) -> str:
        moment = result.finished_at.astimezone(UTC).strftime(_TIME)
        prefix = self._place.prefixes[result.status]
        return f"{prefix}{moment}/{result.actor or 'unknown'}/{_names(result.id)[-1]}.json"

    def _mapped(self, error: Any) -> TransportError:
        text = f"bucket {self._place.bucket}: {error}"
        code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
        if code in _REFUSED or type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
            return AccessDeniedError(text)
        return ConnectionLostError(text)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            if self._client is not None:
                self._client.close()
                self._client = None


def _connect(place: Place) -> Any:
    try:
        from botocore.config import Config
        from botocore.session import Session
    except ImportError:
        raise MissingExtraError("s3", "s3") from None
    session = Session()
    key, secret = os.environ.get("ASYA_S3_ACCESS_KEY"), os.environ.get("ASYA_S3_SECRET_KEY")
    if place.endpoint and not key and session.get_credentials() is None:
        key = secret = "minioadmin"  # noqa: S105  # as Asya has it, and a fresh MinIO
    return session.create_client(
        "s3",
        region_name=place.region or session.get_config_variable("region") or "us-east-1",
        endpoint_url=place.endpoint or None,
        aws_access_key_id=key or None,
        aws_secret_access_key=secret or None,
        config=Config(
            connect_timeout=5,
            read_timeout=20,
            retries={"total_max_attempts": 2},
            s3={"addressing_style": "path"} if place.endpoint else {},
            request_checksum_calculation="when_required",  # not every server knows the newer checksums
            response_checksum_validation="when_required",
        ),
    )


def _indented(envelope: bytes) -> bytes:
    try:
        return msgspec.json.format(envelope, indent=2)
    except msgspec.DecodeError:
        return envelope


def _names(id: str) -> tuple[str, ...]:
    """The names that an object of this id may have: one that is too long for a key is shortened."""
    if len(id.encode("utf-8", "replace")) <= _LONGEST_KEY - 400:
        return (id,)
    return (id, hashlib.sha256(id.encode("utf-8", "replace")).hexdigest())


def _read_key(key: str, prefix: str, status: Status) -> _Key | None:
    """What a key says; None for one that is no result's."""
    moment, _, rest = key.removeprefix(prefix).partition("/")
    actor, _, name = rest.partition("/")
    try:
        datetime.strptime(moment, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return _Key(key, status, moment, actor, name.removesuffix(".json"))


class _Details(msgspec.Struct):
    message: str = ""
    type: str = ""
    traceback: str = ""


class _Error(msgspec.Struct):
    error: str = ""
    details: _Details | None = None


def _failure(envelope: Envelope | None) -> Failure:
    try:
        found = _Error() if envelope is None else msgspec.json.decode(envelope.payload, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = _Error()
    told = found.details or _Details(found.error, found.error)
    return Failure(found.error or PROCESSING_ERROR, told.type, told.message, told.traceback)
