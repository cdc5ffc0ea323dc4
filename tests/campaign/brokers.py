"""The servers that a campaign can be run on, each with its own way to cut connections."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.error import URLError

from tests.brokers.gate import Gate
from tests.brokers.kafka_server import KafkaServer
from tests.brokers.nats_server import NATSServer
from tests.brokers.pubsub_server import PROJECT, PubSubServer
from tests.brokers.rabbitmq_server import RabbitMQServer, path_of
from tests.brokers.redis_server import RedisServer, free_port
from tests.brokers.sqs_server import SQSServer


class Broker(Protocol):
    """A server whose data are on disk before it answers, and outlive `kill`."""

    once: ClassVar[bool]  # whether it settles and sends in one step, so that nothing may come twice
    quiet: ClassVar[float]  # seconds without a change after which nothing more can come, where not all can be counted
    folder: Path

    @property
    def url(self) -> str: ...
    def __init__(self, folder: Path) -> None: ...
    def start(self) -> None: ...  # returns when it takes commands
    def kill(self) -> None: ...
    def close(self) -> None: ...  # for good
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def cut(self, chance: random.Random) -> None: ...  # connections of its clients


def _go_silent(broker: Broker, chance: random.Random) -> None:
    """What is done to a server that cannot be told to cut connections: its clients hear nothing for a while."""
    broker.freeze()
    time.sleep(chance.uniform(0.1, 1.0))
    broker.thaw()


class Redis(RedisServer):
    once = True
    quiet = 0.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, fsync="always")

    def cut(self, chance: random.Random) -> None:
        self.command("CLIENT", "KILL", "TYPE", chance.choice(("pubsub", "normal")))

    def close(self) -> None:
        self.kill()


class RabbitMQ(RabbitMQServer):
    once = False  # what is sent with an acknowledgement is confirmed first, and may be sent again after a crash
    quiet = 200.0  # for so long the server waits for itself, before it moves again what was due when it was killed

    @property
    def url(self) -> str:
        return f"{super().url}?heartbeat=2"

    def cut(self, chance: random.Random) -> None:
        connections = self.request("GET", "connections")
        for each in chance.sample(connections, k=max(1, len(connections) // 2)) if connections else ():
            with suppress(URLError):  # gone meanwhile
                self.request("DELETE", path_of("connections", each["name"]))


class SQS(SQSServer):
    once = False  # what is sent with an acknowledgement is stored first, and may be sent again after a crash
    quiet = 20.0  # what may end its consumers is delayed for up to twelve seconds, which is not counted

    @property
    def url(self) -> str:
        return f"{super().url}&depth=approximate&timeout=5"

    def cut(self, chance: random.Random) -> None:
        """All at once: there are no names to choose by."""
        self.cut_off()


class Kafka(KafkaServer):
    once = False  # what is sent with an acknowledgement is stored first, and may be sent again after a crash
    quiet = 40.0  # what is delayed is not counted, and those who were killed are missed after six seconds

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, settings={"log.flush.interval.messages": 1})

    @property
    def url(self) -> str:
        return f"{super().url}&session=6&timeout=5"

    def cut(self, chance: random.Random) -> None:
        _go_silent(self, chance)


class NATS(NATSServer):
    once = False  # what is sent with an acknowledgement is stored first, and may be sent again after a crash
    quiet = 0.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, jetstream="sync_interval: always")

    @property
    def url(self) -> str:
        return f"{super().url}?timeout=5"

    def cut(self, chance: random.Random) -> None:
        _go_silent(self, chance)


class PubSub(PubSubServer):
    """The emulator keeps all in memory, so it is frozen and cut off, and never killed."""

    once = False  # what is sent with an acknowledgement is stored first, and may be sent again after a crash
    quiet = 45.0  # nothing is counted, and what the dead had pulled is hidden for ten seconds, more than once

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, heap="3g")  # all that lands stays in it until the end
        self._outer = free_port()
        self._gate: Gate | None = None

    @property
    def url(self) -> str:
        return f"pubsub://{PROJECT}?emulator=127.0.0.1:{self._outer}&timeout=5&wait=2"

    def start(self) -> None:
        super().start()
        self._gate = Gate(self._outer, self.port)

    def cut(self, chance: random.Random) -> None:
        """All at once: there are no names to choose by."""
        assert self._gate is not None
        self._gate.cut()

    def close(self) -> None:
        super().close()
        if self._gate is not None:
            self._gate.close()


FORGETFUL: tuple[type[Broker], ...] = (PubSub,)
"""Servers whose data do not outlive `kill`, which is therefore not done to them."""
BROKERS: Mapping[str, type[Broker]] = {
    "kafka": Kafka,
    "nats": NATS,
    "pubsub": PubSub,
    "rabbitmq": RabbitMQ,
    "redis": Redis,
    "sqs": SQS,
}
