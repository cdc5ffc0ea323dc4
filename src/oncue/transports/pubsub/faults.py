"""What the client raises and the service answers, as errors of ours. No text of theirs gets out without being redacted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    InvalidValueError,
    LeaseLostError,
    MessageTooLargeError,
    OnCueError,
    QueueNotFoundError,
    ThrottledError,
)
from oncue.core.redact import redact

_Code = grpc.StatusCode
_LOST = frozenset({_Code.UNAVAILABLE, _Code.INTERNAL, _Code.UNKNOWN, _Code.ABORTED, _Code.CANCELLED})
_DENIED = frozenset({_Code.PERMISSION_DENIED, _Code.UNAUTHENTICATED})
_DETAILS = "grpc-status-details-bin"
_STALE = "EXACTLY_ONCE_ACKID_FAILURE"
_PASSING = "TRANSIENT_FAILURE_"
_SHOWN = 300


def fault(error: BaseException, where: str, queue: str | None = None) -> OnCueError:
    """`error` as one of ours; `where` names the service without secrets, `queue` what was asked about."""
    if isinstance(error, OnCueError):
        return error
    if isinstance(error, aio.AioRpcError):
        return _said(error.code(), str(error.details() or ""), where, queue)
    if isinstance(error, DefaultCredentialsError):
        return AccessDeniedError(
            f"{where}: no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS, run 'gcloud auth application-default "
            "login', or name an emulator by ?emulator="
        )
    if isinstance(error, GoogleAuthError):
        return AccessDeniedError(f"{where}: no credentials: {_line(str(error))}")
    text = str(error) or ("no answer in time" if isinstance(error, asyncio.TimeoutError) else type(error).__name__)
    return ConnectionLostError(f"{where}: {_line(text)}")


def is_late(error: BaseException) -> bool:
    """Whether it is that no answer came in time."""
    cause = error.__cause__
    return isinstance(cause, aio.AioRpcError) and cause.code() is _Code.DEADLINE_EXCEEDED


def is_there(error: BaseException) -> bool:
    """Whether it is that there is such a thing already."""
    cause = error.__cause__
    return isinstance(cause, aio.AioRpcError) and cause.code() is _Code.ALREADY_EXISTS


def is_forbidden(error: BaseException) -> bool:
    """Whether the credentials are right, and only this was not allowed to them."""
    cause = error.__cause__
    return isinstance(cause, aio.AioRpcError) and cause.code() is _Code.PERMISSION_DENIED


def refused(error: BaseException) -> Mapping[str, bool] | None:
    """Handles that a call refused while it did what it was asked to for the others, and whether to ask again for each.

    None if it is another error.
    """
    cause = error.__cause__ if isinstance(error, OnCueError) else error
    if not isinstance(cause, aio.AioRpcError):
        return None
    for name, value in cause.trailing_metadata() or ():
        if name == _DETAILS:
            found = _refused(value)
            if found is not None:
                return found
    return None


def _refused(raw: Any) -> Mapping[str, bool] | None:
    status = status_pb2.Status.FromString(raw)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.reason == _STALE:
            return {handle: word.startswith(_PASSING) for handle, word in info.metadata.items()}
    return None


def _said(code: Any, text: str, where: str, queue: str | None) -> OnCueError:
    shown = _line(f"{code.name}: {text}" if text else code.name)
    if code is _Code.NOT_FOUND and "project" in text.lower() and "projects/" not in text:
        return AccessDeniedError(f"{where}: there is no such project, or it is not shown to these credentials: {shown}")
    if code is _Code.NOT_FOUND:
        return QueueNotFoundError(queue or "?")
    if code in _DENIED:
        return AccessDeniedError(f"{where}: access was denied: {shown}")
    if code is _Code.RESOURCE_EXHAUSTED:
        if "larger than" in text or "exceeds maximum" in text:
            return MessageTooLargeError(queue or "?", 0, 0)
        return ThrottledError(f"{where}: asked too often: {shown}")
    if code is _Code.DEADLINE_EXCEEDED:
        return ConnectionLostError(f"{where}: no answer in time")
    if code is _Code.UNAVAILABLE and "metadata from plugin" in text:
        return AccessDeniedError(f"{where}: the credentials brought no token: {shown}")
    if code in _LOST:
        return ConnectionLostError(f"{where}: {shown}")
    if code is _Code.INVALID_ARGUMENT and "ack id" in text:
        return LeaseLostError(queue or "?", "?")
    if code is _Code.INVALID_ARGUMENT and "project" in text.lower() and "name" not in text.lower():
        return InvalidValueError(f"{where}: {shown}")
    return IncompatibleStoreError(f"{where}: {shown}")


def _line(text: str) -> str:
    found = redact(" ".join(text.split()))
    return found if len(found) <= _SHOWN else found[:_SHOWN] + "…"
