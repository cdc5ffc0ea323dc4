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
FINAL = (*_DENIED, theirs.OffsetMetadataTooLargeError, theirs.InvalidCommitOffsetSizeError)
"""What no repetition of a commit changes."""
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
    if isinstance(error, theirs.InvalidSessionTimeoutError):
        return IncompatibleStoreError(
            f"{where}: the servers do not allow such a session; their limits are group.min.session.timeout.ms and "
            "group.max.session.timeout.ms, the parameter is 'session'"
        )
    if isinstance(error, theirs.OffsetMetadataTooLargeError):
        return IncompatibleStoreError(f"{where}: offset.metadata.max.bytes has to be at least 4096 there: {text}")
    if isinstance(error, _OLD):
        return IncompatibleStoreError(f"{where}: Kafka 2.4 or newer is needed: {text}")
    return ConnectionLostError(f"{where}: {text}")
