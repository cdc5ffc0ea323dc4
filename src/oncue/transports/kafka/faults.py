"""What the client raises, as errors of ours. No text of its gets out without being redacted."""

from __future__ import annotations

from aiokafka import errors as theirs

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    StorageFullError,
    TransportError,
)
from oncue.core.redact import redact

TROUBLE = (theirs.KafkaError, OSError, TimeoutError)
"""Whatever may go wrong with a request. The client raises `ConnectionError` and `TimeoutError` of its own accord as well."""
_DENIED = (
    theirs.AuthenticationFailedError,
    theirs.AuthenticationMethodNotSupported,
    theirs.SaslAuthenticationFailed,
    theirs.UnsupportedSaslMechanismError,
    theirs.TopicAuthorizationFailedError,
    theirs.GroupAuthorizationFailedError,
    theirs.ClusterAuthorizationFailedError,
    theirs.PolicyViolationError,
)
_OLD = (
    theirs.UnsupportedVersionError,
    theirs.IncompatibleBrokerVersion,
    theirs.UnrecognizedBrokerVersion,
    theirs.InconsistentGroupProtocolError,
)


def fault(error: BaseException, where: str) -> TransportError:
    """`error` as one of ours; `where` names the servers without secrets."""
    if isinstance(error, TransportError):
        return error
    text = redact(str(error) or type(error).__name__)
    if isinstance(error, _DENIED):
        return AccessDeniedError(f"{where}: access was denied: {text}")
    if isinstance(error, theirs.KafkaStorageError):
        return StorageFullError(f"{where}: the server cannot write: {text}")
    if isinstance(error, _OLD):
        return IncompatibleStoreError(f"{where}: Kafka 2.4 or newer is needed: {text}")
    return ConnectionLostError(f"{where}: {text}")
