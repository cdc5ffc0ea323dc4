"""Celery. Its best honest setting: acknowledged after success, one producer for all sends, no results, no events, no gossip,
mingling or heartbeats of workers, and the pool and prefetch that drain fastest here; its pool of processes, which it has by
itself, is slower than none. It has no call for many, as a group is sent one by one, and more threads that send are slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.brokers.contest import Calls

NAME = "Celery"
PACKAGES = {
    "redis": ("celery", "kombu", "redis"),
    "rabbitmq": ("celery", "kombu", "amqp"),
    "sqs": ("celery", "kombu", "boto3", "pycurl"),
}
MODES = {
    "redis": {"one by one": 1.0},
    "rabbitmq": {"one by one, unconfirmed": 1.0, "one by one, confirmed": 0.1},
    "sqs": {"one by one": 0.1},
}
CHOICES = dict.fromkeys(
    PACKAGES, ("solo, prefetch 64", "solo, prefetch 1000", "threads 1, prefetch 1000", "threads 8, prefetch 1000")
)


def _app(url: str, add: Callable[[int], None] | None = None, **settings: Any) -> Any:
    from celery import Celery

    if url.startswith("sqs"):
        credentials, endpoint = url.split("@", maxsplit=1)[0], url.partition("endpoint=http://")[2].partition("&")[0]
        url = f"{credentials}@{endpoint}//"
        options = {"is_secure": False, "region": "eu-west-1", "wait_time_seconds": 1, "polling_interval": 0}
        settings.setdefault("broker_transport_options", {}).update(options)
    app = Celery("bench", broker=url.replace("amqp://", "pyamqp://"), set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        task_default_queue="work",
        task_default_delivery_mode="persistent",
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        **settings,
    )

    @app.task(name="noop")
    def noop(number: int) -> None:
        if add is not None:
            add(number)

    app.finalize()
    return app


@contextmanager
def sender(url: str, mode: str) -> Iterator[Calls]:
    app = _app(url, broker_transport_options={"confirm_publish": True} if mode.endswith(" confirmed") else {})
    noop = app.tasks["noop"]
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        connection.connect()
        yield Calls(lambda number: noop.apply_async((number,), producer=producer))


@contextmanager
def worker(url: str, add: Callable[[int], None], choice: str = "solo, prefetch 64") -> Iterator[None]:
    from celery.worker import state

    pool, _, prefetch = choice.partition(", prefetch ")
    kind, _, count = pool.partition(" ")
    concurrency = int(count or 1)
    app = _app(url, add, worker_prefetch_multiplier=int(prefetch) // concurrency)
    controller = app.WorkController(
        app=app,
        pool=kind,
        concurrency=concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    running = threading.Thread(target=controller.start, daemon=True)
    running.start()
    yield
    state.should_stop = 0  # the status to exit with; `stop` must not be called by another thread
    running.join(10)
