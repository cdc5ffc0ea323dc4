"""Queues in NATS JetStream, which any number of machines may share.

From the outside in: `transport` has the contract's methods, `subscription` and `lease` what is received. `intake` asks for
messages, `publisher` sends and waits until they are stored, `mover` moves what is due where the server cannot, `queues` are made
and compared, and `place` says what of JetStream a queue is. `jetstream` asks for one thing at a time, `link` keeps the connection,
`address` reads its URL, `codec` writes messages, and `faults` turns what the server says into our errors. Under all of it is
`core`, a client of the protocol.
"""

from __future__ import annotations

from oncue.transports.nats.transport import FEATURES, NATSTransport, open_nats

__all__ = ["FEATURES", "NATSTransport", "open_nats"]
