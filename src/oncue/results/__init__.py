"""Where the ends of routes are kept for later questions: a store of results, by the id of the message.

The end actors write here when a store is set; `oncue result` and callers that come late read. The module of a kind of store is
imported when the first URL of that kind is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from oncue.core.errors import InvalidValueError
from oncue.core.failure import Failure

__all__ = ["STATUSES", "Result", "ResultStore", "Status", "open_results"]

Status = Literal["succeeded", "failed"]
STATUSES: tuple[Status, ...] = ("succeeded", "failed")

_DEFAULT_RETENTION = 7 * 86400.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a route ended: the last envelope as it came, the actor it came from, and the failure if it failed."""

    id: str
    status: Status
    actor: str
    finished_at: datetime
    envelope: bytes
    parent_id: str | None = None
    failure: Failure | None = None


class ResultStore(Protocol):
    """Every method may be cancelled; all but `close` raise `TransportError`s when the store cannot be reached."""

    async def put(self, result: Result) -> None: ...  # stored when it returns; again: nothing; a later one replaces
    async def get(self, id: str) -> Result | None: ...
    async def list(
        self, *, status: Status | None = None, limit: int = 100, before: datetime | None = None
    ) -> Sequence[Result]: ...  # newest first, those that finished before `before`
    async def purge(self) -> int: ...  # drops what is older than the retention, says how many
    async def close(self) -> None: ...  # may be called twice


def open_results(url: str, retention: float = _DEFAULT_RETENTION) -> ResultStore:
    """The store at `url` (`sqlite:///PATH`, `s3://BUCKET/PREFIX?endpoint=…`), whose results are kept for `retention` seconds.

    Touches nothing yet: the first result makes the file or the bucket. Raise `InvalidValueError` for a URL that names no
    store, and `MissingExtraError` when its client is not installed.
    """
    try:
        if url.lower().startswith("s3:"):
            from oncue.results.s3 import S3Results

            return S3Results(url, retention)
        from oncue.results.sqlite import SQLiteResults, path_of

        return SQLiteResults(path_of(url), retention)
    except InvalidValueError as error:
        raise InvalidValueError(f"result store {error}") from None
