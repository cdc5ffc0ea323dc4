"""What the client raises and the server answers, as errors of ours. No text of theirs gets out without being redacted."""

from __future__ import annotations

import re

from redis import exceptions as theirs

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    StorageFullError,
    TransportError,
)
from oncue.core.redact import redact

_FULL = re.compile(r"\b(OOM|MISCONF)\b")
_DENIED = re.compile(
    r"\b(NOPERM|NOAUTH|WRONGPASS)\b|invalid username-password|invalid password|the user executing the script can't",
    re.IGNORECASE,
)
_AWAY = re.compile(
    r"\b(READONLY|LOADING|MOVED|ASK|TRYAGAIN|CLUSTERDOWN|MASTERDOWN|NOREPLICAS|BUSY|UNBLOCKED|NOTBUSY|max number of clients)\b"
)
_OLD = re.compile(r"unknown command|\bNOPROTO\b|wrong number of arguments", re.IGNORECASE)
_NOISE = re.compile(r"\s*script: [0-9a-f]{40}, on @user_script:\d+\.?|^user_script:\d+: ")


def fault(error: BaseException, where: str) -> TransportError:
    """`error` as one of ours; `where` names the server without secrets."""
    if isinstance(error, TransportError):
        return error
    # The client cuts off the word that an answer begins with, such as MOVED.
    text = f"{getattr(error, 'status_code', None) or ''} {error}".strip()
    if isinstance(error, theirs.AuthenticationError | theirs.AuthorizationError | theirs.NoPermissionError):
        return AccessDeniedError(f"{where}: access was denied: {redact(text)}")
    if isinstance(error, theirs.ResponseError) or (isinstance(error, theirs.RedisError) and _DENIED.search(text)):
        return said(text, where)
    return ConnectionLostError(f"{where}: {redact(text) or type(error).__name__}")


def said(text: str, where: str) -> TransportError:
    """What the server answered, as one of ours."""
    shown = redact(_NOISE.sub("", text))
    if _FULL.search(text):
        return StorageFullError(f"{where}: the server takes nothing more: {shown}")
    if _DENIED.search(text):
        return AccessDeniedError(f"{where}: access was denied: {shown}")
    if _AWAY.search(text):
        return ConnectionLostError(f"{where}: {shown}")
    if _OLD.search(text):
        return IncompatibleStoreError(f"{where}: Redis 6.2 or newer is needed, or a Valkey: {shown}")
    return IncompatibleStoreError(f"{where}: {shown}")
