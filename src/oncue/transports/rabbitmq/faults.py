"""What the server says against something, as errors of ours. No text gets out without being redacted."""

from __future__ import annotations

import re
from typing import TypeVar

from oncue.core.errors import (
    AccessDeniedError,
    ConnectionLostError,
    IncompatibleStoreError,
    QueueNotFoundError,
    TransportError,
    again,
)
from oncue.core.redact import redact
from oncue.transports.rabbitmq.amqp import ChannelClosed, ClosedError

NOT_FOUND, REFUSED, LOCKED, PRECONDITION, NOT_IMPLEMENTED, NOT_ALLOWED = 404, 403, 405, 406, 540, 530
INTERNAL_ERROR = 541
_NO_QUEUE = re.compile(r"no queue '([^']*)'")
_FOR_NOW = re.compile(r"\blimit\b|\bdown\b|not available|unavailable", re.IGNORECASE)

Error = TypeVar("Error", bound=TransportError)


def fault(error: BaseException, where: str) -> TransportError:
    """`error` as one of ours; `where` names the server without secrets."""
    if isinstance(error, TransportError):
        return again(error)
    if not isinstance(error, ClosedError):
        text = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        return ConnectionLostError(f"{where}: {redact(text)}")
    shown = redact(str(error))
    missing = _NO_QUEUE.search(error.text)
    if error.code == NOT_FOUND and missing is not None and isinstance(error, ChannelClosed):
        return QueueNotFoundError(missing[1])
    if error.code in {REFUSED, LOCKED, NOT_ALLOWED} and not _FOR_NOW.search(error.text):
        return AccessDeniedError(f"{where}: access was denied: {shown}")
    if error.code == NOT_IMPLEMENTED:
        return IncompatibleStoreError(f"{where}: RabbitMQ 3.10 or newer is needed: {shown}")
    return ConnectionLostError(f"{where}: {shown}")
