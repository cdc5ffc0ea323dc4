"""A client of the NATS protocol: connects, publishes, subscribes and asks; knows nothing of JetStream or of queues."""

from __future__ import annotations

from oncue.transports.nats.core.connection import Answer, Connection, Endpoint, Heard, connect
from oncue.transports.nats.core.faults import ClosedError, DeniedError, Refusal, RefusedError, SilentError
from oncue.transports.nats.core.futures import tell
from oncue.transports.nats.core.login import Login

__all__ = [
    "Answer",
    "ClosedError",
    "Connection",
    "DeniedError",
    "Endpoint",
    "Heard",
    "Login",
    "Refusal",
    "RefusedError",
    "SilentError",
    "connect",
    "tell",
]
