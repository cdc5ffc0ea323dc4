"""What the client raises and the service answers, as errors of ours. No text of theirs gets out without being redacted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as theirs

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
    TransportError,
)
from oncue.core.redact import redact

_MISSING = frozenset({"QueueDoesNotExist", "NonExistentQueue"})
_STALE = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidReceiptHandle"})
_STALE_WORDS = ("receipt handle", "not available for visibility timeout change", "Total VisibilityTimeout")
_THROTTLED = frozenset(
    {"Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException"}
    | {
        "TooManyRequestsException",
        "SlowDown",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "KmsThrottled",
        "OverLimit",
    }
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
    }
    | {"InvalidAccessKeyId", "InvalidAddress", "InvalidClientTokenId", "InvalidSecurity", "MissingAuthenticationToken"}
    | {
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
    | {"KmsAccessDenied", "KmsDisabled", "KmsInvalidState", "KmsNotFound", "KmsOptInRequired", "InvalidToken"}
)
_FORBIDDEN = frozenset({"AccessDenied", "AccessDeniedException", "NotAuthorized", "UnauthorizedOperation"})
_LONGEST = 300
"""Characters of another's text that are shown."""
_TOO_LONG = ("MessageTooLong", "must be shorter than", "BatchRequestTooLong", "batch request is longer")
_SETTINGS = (
    theirs.NoRegionError,
    theirs.InvalidRegionError,
    theirs.ProfileNotFound,
    theirs.ConfigNotFound,
    theirs.ConfigParseError,
    theirs.InvalidConfigError,
    theirs.InfiniteLoopConfigError,
)
_CREDENTIALS = (theirs.NoCredentialsError, theirs.PartialCredentialsError)
_SIGNED_OUT = (theirs.SSOError, theirs.TokenRetrievalError)


def fault(error: BaseException, where: str, queue: str | None = None) -> OnCueError:
    """`error` as one of ours; `where` names the service without secrets, `queue` what was asked about."""
    if isinstance(error, OnCueError):
        return error
    if isinstance(error, theirs.ClientError):
        return said(error.response.get("Error", {}), where, queue, _status(error))
    if isinstance(error, _SETTINGS):
        return InvalidValueError(f"{where}: {redact(str(error))}")
    if isinstance(error, _CREDENTIALS):
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile=, or give the machine a role"
        return InvalidValueError(f"{where}: no credentials: {redact(str(error))}; {advice}")
    if isinstance(error, OSError) and error.filename:  # such as the token of a web identity
        return InvalidValueError(f"{where}: {redact(str(error))}")
    if isinstance(error, _SIGNED_OUT):
        return AccessDeniedError(f"{where}: {redact(str(error))}")
    text = _line(str(error)) or (
        "no answer in time" if isinstance(error, asyncio.TimeoutError) else type(error).__name__
    )
    return ConnectionLostError(f"{where}: {redact(text)}")


def said(error: Mapping[str, Any], where: str, queue: str | None, status: int = 400) -> TransportError:
    """What the service answered, to a call or to one entry of a batch."""
    code = str(error.get("Code", "")).rpartition(".")[2]
    text = str(error.get("Message") or "")
    shown = redact(_line(f"{code}: {text}" if text else code))
    if code in _MISSING:
        return QueueNotFoundError(queue or "?")
    if code in _STALE or any(word in text for word in _STALE_WORDS):
        return LeaseLostError(queue or "?", "?")
    if code in _THROTTLED or status == 429:
        return ThrottledError(f"{where}: asked too often: {shown}")
    if code in _DENIED or status in {401, 403}:
        return AccessDeniedError(f"{where}: access was denied: {shown}")
    if any(word in text or word == code for word in _TOO_LONG):
        return MessageTooLargeError(queue or "?", 0, 0)
    if status >= 500 or code in {"InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable"}:
        return ConnectionLostError(f"{where}: {shown}")
    return IncompatibleStoreError(f"{where}: {shown}")


def _line(text: str) -> str:
    """On one line, and not too long: what stands between may answer with a page of HTML."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_passing(error: BaseException) -> bool:
    """Whether the same may be asked again: it was too much, or the service said that it cannot at the moment."""
    cause = error.__cause__
    if not isinstance(cause, theirs.ClientError):
        return isinstance(error, ThrottledError)
    return isinstance(error, ThrottledError) or _status(cause) >= 500


def _status(error: theirs.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))


def is_forbidden(error: BaseException) -> bool:
    """Whether the credentials are right, and only this was not allowed to them."""
    cause = error.__cause__
    code = cause.response.get("Error", {}).get("Code", "") if isinstance(cause, theirs.ClientError) else ""
    return isinstance(error, AccessDeniedError) and str(code).rpartition(".")[2] in _FORBIDDEN


def code_of(error: BaseException) -> str:
    """The service's word for what `error` was made of, or nothing."""
    cause = error.__cause__
    code = cause.response.get("Error", {}).get("Code", "") if isinstance(cause, theirs.ClientError) else ""
    return str(code).rpartition(".")[2]
