"""Queues in a Kafka cluster, which any number of machines may share: a topic and a consumer group for each.

From the outside in: `transport` has the contract's methods, `subscription` and `lease` what is received. A `member` is this
process's part in the group of one queue, shared by all its subscriptions here; for each partition it keeps a `ledger`, which says
what is done and what is held, and is written into the committed offset. `assignor` leaves partitions with those who are at work
on them. `desk` puts the parts of a transport together and sends; `cluster` asks the servers for one thing at a time; `registry`
remembers what queues were declared as; `delays` moves on what has come due. `address` reads the URL, `codec` writes messages, and
`faults` turns what the client raises into our errors.
"""

from __future__ import annotations

from oncue.transports.kafka.transport import FEATURES, KafkaTransport, open_kafka

__all__ = ["FEATURES", "KafkaTransport", "open_kafka"]
