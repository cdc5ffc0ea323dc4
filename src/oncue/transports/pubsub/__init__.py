"""Queues in Google Pub/Sub, or in its emulator: each is a topic with one subscription, and a second pair for what is delayed.

From the outside in: `transport` has the contract's methods, `subscription` and `lease` what is received. They work with the parts
of the one `desk` of their transport. `lines` gather what is asked for at the same moment into one call, `queues` are made, found
and compared, under the names that `names` gives them and with the labels of `labels`, and `later` moves what is delayed when it is
due. `calls` asks the service for one thing, `client` finds credentials and connects, `monitoring` asks for counts, `address` reads the URL, `codec` writes
messages, and `faults` turns what the service says into our errors.
"""

from __future__ import annotations

from oncue.transports.pubsub.transport import FEATURES, PubSubTransport, open_pubsub

__all__ = ["FEATURES", "PubSubTransport", "open_pubsub"]
