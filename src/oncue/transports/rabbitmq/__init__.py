"""Queues in a RabbitMQ server, which any number of machines may share.

From the outside in: `transport` has the contract's methods, `subscription` and `lease` what is received. They work with the parts
of the one `desk` of their transport. `intake` is the channel that a subscription gets its messages by, `publisher` sends and waits
for confirms, `queues` are made and compared, `registry` remembers what they were declared as, and `ladder` is where delayed
messages lie. `calls` asks the server for one thing at a time, `link` keeps a connection, `address` reads its URL, `codec` writes
messages, and `faults` turns what the server says into our errors. Under all of it is `amqp`, a client of the protocol.
"""

from __future__ import annotations

from oncue.transports.rabbitmq.transport import FEATURES, RabbitMQTransport, open_rabbitmq

__all__ = ["FEATURES", "RabbitMQTransport", "open_rabbitmq"]
