"""Queues in a Redis or Valkey server, which any number of machines may share.

From the outside in: `transport` has the contract's methods and `subscription` its leases; both ask the one `desk` of their
connection, which makes one `turn` of what was asked in the same moment. A turn is one call of a script (`scripts`), in which
the server does all of it in one step. `link` keeps the connection, `address` reads its URL, `codec` writes messages, and
`faults` turns what the client raises into our errors.
"""

from __future__ import annotations

from oncue.transports.redis.transport import FEATURES, RedisTransport, open_redis

__all__ = ["FEATURES", "RedisTransport", "open_redis"]
