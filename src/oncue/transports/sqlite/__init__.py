"""Queues in one SQLite file: the embedded default. Durable, shared by any number of processes of one machine.

From the outside in: `transport` has the contract's methods and `subscription` its leases; both hand requests to the one
`writer` thread of the process, which makes each `batch` of them one transaction of statements in `store`. `reader` answers
questions. Below are the tables (`schema`), the file (`file`), the clocks (`clock`) and the bell between processes (`wake`).
"""

from __future__ import annotations

from oncue.transports.sqlite.transport import FEATURES, SQLiteTransport, open_sqlite

__all__ = ["FEATURES", "SQLiteTransport", "open_sqlite"]
