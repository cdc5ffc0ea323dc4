"""Queues in Amazon SQS, or in a server that speaks its protocol.

From the outside in: `transport` has the contract's methods, `subscription` and `lease` what is received. They work with the parts
of the one `desk` of their transport. `lines` gather what is asked for at the same moment into batches of ten, `queues` are made,
found and compared, under the names that `names` gives them. `calls` asks the service for one thing and waits while it is asked
too often, `client` finds credentials, `address` reads the URL, `codec` writes messages, `clock` knows since when an answer may
have lain here, and `faults` turns what the service says into our errors.
"""

from __future__ import annotations

from oncue.transports.sqs.transport import FEATURES, SQSTransport, open_sqs

__all__ = ["FEATURES", "SQSTransport", "open_sqs"]
