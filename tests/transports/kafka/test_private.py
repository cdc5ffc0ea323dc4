"""What is used of aiokafka beside its public names: the transport counts on it, so a version without it must not go unnoticed."""

from __future__ import annotations

import asyncio
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator, NoGroupCoordinator
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.protocol.metadata import MetadataRequest
from transports.kafka.support import opened
from transports.words import sends

from oncue.transports.kafka import private

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "src" / "oncue" / "transports" / "kafka"


def text_of(kind: type) -> str:
    """The whole module that defines it."""
    return Path(inspect.getfile(kind)).read_text(encoding="utf-8")


def test_the_client_that_is_installed_is_in_the_range_that_is_asked_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = extras["kafka"]
    assert wanted == "aiokafka>=0.14,<0.15"
    assert version("aiokafka").startswith("0.14."), (
        "see private.py, try the tests on a real server, then widen the range"
    )
    assert aiokafka.__version__ == version("aiokafka")


def test_the_names_that_are_used_are_there_and_mean_the_same() -> None:
    source = {each: text_of(each) for each in (GroupCoordinator, NoGroupCoordinator, AIOKafkaConsumer)}
    for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "generation"):
        assert f"self.{name} = " in source[GroupCoordinator]
    assert "self._reset_committed_task = " in source[NoGroupCoordinator]
    for name in ("_coordinator", "_fetcher", "_client"):
        assert f"self.{name} = " in source[AIOKafkaConsumer]
    assert list(inspect.signature(GroupCoordinator.request_rejoin).parameters) == ["self"]
    assert inspect.iscoroutinefunction(Fetcher.close)
    assert inspect.iscoroutinefunction(AIOKafkaClient.close)
    assert set(private._CONNECTING) <= set(inspect.signature(create_conn).parameters)
    for kind, names in (
        (AIOKafkaClient, ("_conns", "_topics", "_sync_task", "_get_conn")),
        (MetadataRequest, ("_allow_auto_topic_creation",)),
        (AIOKafkaConnection, ("_writer",)),
        (AIOKafkaProducer, ("_sender", "_message_accumulator", "_closed")),
        (MessageAccumulator, ("_closed",)),
    ):
        text = text_of(kind)
        for name in names:
            assert re.search(rf"self\.{name}\b", text), f"{kind.__name__}.{name}"


def test_only_one_file_uses_what_is_not_public() -> None:
    for path in SOURCES.glob("*.py"):
        if path.name != "private.py":
            assert "SLF001" not in path.read_text(), path.name


async def test_whoever_is_stopped_leaves_no_task_and_no_connection(url: str) -> None:
    before = asyncio.all_tasks()
    async with opened(url) as transport:
        await transport.send(*sends(1))
        consumer = transport.desk.cluster.reader(group_id="oncue.other")
        await consumer.start()
        consumer.subscribe(["work"])
        connections = private.inside(consumer)._conns
        await asyncio.sleep(0.1)
        await private.stop(consumer, 0.0)  # as if it took too long
        assert not any(connection.connected() for connection in connections.values())
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() <= before
