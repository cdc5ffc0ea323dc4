"""What the server says against something, as errors of ours. No text gets out without being redacted."""

from __future__ import annotations

import ssl

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    StorageFullError,
    TransportError,
    again,
)
from oncue.core.redact import redact
from oncue.transports.nats.core import ClosedError, DeniedError, Refusal, RefusedError

STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND = 10059, 10014, 10037
STREAM_EXISTS, CONSUMER_NOT_UNIQUE, CONSUMER_EXISTS = 10058, (10099, 10100), (10013, 10148)
TOO_LARGE = 10054
BUSY = frozenset({10008, 10158, 10163, 10167})
"""Try again: too much at a time, nobody leads, or the same message is just being stored."""
_FULL = frozenset({10002, 10023, 10027, 10028, 10047, 10077, 10113, 10120})
"""No room, or a limit of the stream or the account is reached."""
_OFF = frozenset({10035, 10039, 10076})
"""No JetStream for this account, or none at all."""


def fault(error: BaseException, where: str) -> TransportError:
    """`error` as one of ours; `where` names the server without secrets."""
    if isinstance(error, TransportError):
        return again(error)
    shown = redact(str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__))
    if isinstance(error, RefusedError):
        return _refused(error.refusal, f"{where}: {shown}")
    if isinstance(error, DeniedError) or (isinstance(error, ClosedError) and error.denied):
        return AccessDeniedError(f"{where}: access was denied: {shown}")
    of_a_key = isinstance(error, ValueError | ImportError | FileNotFoundError)  # which is read anew for each connection
    if of_a_key and not isinstance(error, ssl.SSLError):
        return AccessDeniedError(f"{where}: its key cannot be used: {shown}")
    return ConnectionLostError(f"{where}: {shown}")


def _refused(error: Refusal, text: str) -> TransportError:
    if error.err_code in _FULL:
        return StorageFullError(text)
    if error.err_code in _OFF:
        return IncompatibleStoreError(f"{text}: JetStream is needed")
    if error.code in {503, 504, 408} or error.err_code in BUSY:
        return ConnectionLostError(text)
    return IncompatibleStoreError(text)
