"""Dramatiq as it comes, which acknowledges after success and tries again, with the number of threads and the prefetch that
drain fastest here. It has no call for many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.brokers.contest import Calls

NAME = "Dramatiq"
PACKAGES = {"redis": ("dramatiq", "redis"), "rabbitmq": ("dramatiq", "pika")}
MODES = {
    "redis": {"one by one": 1.0, "threads": 1.0},
    "rabbitmq": {"one by one, unconfirmed": 1.0, "threads, unconfirmed": 1.0, "one by one, confirmed": 0.1},
}
CHOICES = dict.fromkeys(
    ("redis", "rabbitmq"),
    tuple(f"{threads} threads, prefetch {ahead}" for threads in (1, 2, 8) for ahead in (16, 1000)),
)


def _noop(url: str, add: Callable[[int], None] | None = None, *, confirmed: bool = False) -> Any:
    import dramatiq

    if url.startswith("redis"):
        from dramatiq.brokers.redis import RedisBroker

        broker: Any = RedisBroker(url=url)
    else:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        broker = RabbitmqBroker(url=url, confirm_delivery=confirmed)
    dramatiq.set_broker(broker)

    @dramatiq.actor(queue_name="work")
    def noop(number: int) -> None:
        if add is not None:
            add(number)

    return noop


@contextmanager
def sender(url: str, mode: str) -> Iterator[Calls]:
    noop = _noop(url, confirmed=mode.endswith(" confirmed"))
    if not url.startswith("redis"):
        noop.broker.declare_queue("work", ensure=True)
    yield Calls(noop.send)
    noop.broker.close()


@contextmanager
def worker(url: str, add: Callable[[int], None], choice: str = "2 threads, prefetch 16") -> Iterator[None]:
    threads, _, prefetch = choice.partition(" threads, prefetch ")
    os.environ["dramatiq_queue_prefetch"] = prefetch  # noqa: SIM112  # it is called so, and read when it is imported
    noop = _noop(url, add)
    from dramatiq import Worker

    running = Worker(noop.broker, worker_threads=int(threads))
    running.start()
    yield
    running.stop()
    noop.broker.close()
