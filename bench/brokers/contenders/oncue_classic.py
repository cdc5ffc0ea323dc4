"""OnCue on RabbitMQ's classic queues, which the peers use as well; by itself it makes quorum queues, which cost the server more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from bench.brokers.contenders import oncue
from bench.brokers.contest import Calls

NAME = "OnCue on classic queues"
PACKAGES = {"rabbitmq": oncue.PACKAGES["rabbitmq"]}
MODES = {"rabbitmq": oncue.MODES["rabbitmq"]}


def sender(url: str, mode: str) -> AbstractAsyncContextManager[Calls]:
    return oncue.sender(f"{url}?queues=classic", mode)


def worker(url: str, add: Callable[[int], None]) -> AbstractAsyncContextManager[None]:
    return oncue.worker(f"{url}?queues=classic", add)
