"""What Prometheus gets to see of the events."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pumping import Work, in_virtual_time, place

from oncue.core.errors import ConnectionLostError
from oncue.core.failure import PROCESSING_ERROR, Failure
from oncue.core.message import Message
from oncue.core.outcome import Dead, Done, Outcome, Retry
from oncue.events import (
    EVENTS,
    BrokerBack,
    BrokerLost,
    HandlerAbandoned,
    LeaseLost,
    LoopBlocked,
    MessageDead,
    MessageDone,
    MessageReleased,
    MessageRetried,
    MessageStarted,
    PumpStarted,
    PumpStopped,
    SettleFailed,
)
from oncue.metrics import BUCKETS, Metrics, QueueDepth


def families(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The number of one sample, or None where there is none; `name` as in a query."""
    return sample(metrics.expose(), name, **labels)


def sample(text: bytes, name: str, **labels: str) -> float | None:
    found = [
        each.value
        for family in families(text).values()
        for each in family.samples
        if each.name == name and each.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


ENDS = {
    "done": MessageDone("q", "a", 1, 0.3, 0),
    "retried": MessageRetried("q", "a", 1, 0.3, 2.0, "E: secret"),
    "dead": MessageDead("q", "a", 1, 0.3, "E: secret"),
    "released": MessageReleased("q", "a", 1, 0.3),
    "lost": LeaseLost("q", "a", 1, 0.3),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_an_attempt_is_counted_by_its_outcome_and_timed_whatever_it_is(metrics: Metrics, outcome: str) -> None:
    metrics(MessageStarted("q", "a", 1))
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 1
    metrics(ENDS[outcome])
    for other in ENDS:
        assert value(metrics, "oncue_messages_total", queue="q", outcome=other) == (other == outcome)
    assert value(metrics, "oncue_handler_seconds_count", queue="q") == 1
    assert value(metrics, "oncue_handler_seconds_sum", queue="q") == pytest.approx(0.3)
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 0


def test_what_died_without_its_handler_being_called_is_neither_timed_nor_in_flight(metrics: Metrics) -> None:
    metrics(ENDS["dead"])
    assert value(metrics, "oncue_messages_total", queue="q", outcome="dead") == 1
    assert value(metrics, "oncue_handler_seconds_count", queue="q") == 0
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 0


def test_two_messages_of_one_id_are_two_in_flight(metrics: Metrics) -> None:
    for _ in range(2):
        metrics(MessageStarted("q", "a", 1))
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 2
    metrics(ENDS["done"])
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 1
    metrics(ENDS["done"])
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 0


def test_a_time_is_in_the_bucket_of_its_upper_bound(metrics: Metrics) -> None:
    for seconds in (0.0, 0.001, 0.0011, 60.0, 9999.0):
        metrics(MessageStarted("q", "a", 1))
        metrics(MessageDone("q", "a", 1, seconds, 0))
    counted = {bound: value(metrics, "oncue_handler_seconds_bucket", queue="q", le=str(bound)) for bound in BUCKETS}
    assert counted[0.001] == 2
    assert counted[0.005] == counted[30.0] == 3
    assert counted[60.0] == counted[1800.0] == 4
    assert value(metrics, "oncue_handler_seconds_bucket", queue="q", le="+Inf") == 5


def test_a_broker_is_up_or_not_and_unknown_where_no_pump_runs(metrics: Metrics) -> None:
    def up() -> float | None:
        return value(metrics, "oncue_broker_up", queue="q")

    metrics(BrokerLost("q", "away"))
    assert up() is None
    metrics(PumpStarted("q", 1))
    assert up() == 1
    metrics(BrokerLost("q", "away"))
    assert up() == 0
    metrics(BrokerBack("q", 3.0))
    assert up() == 1
    metrics(PumpStopped("q", 0, 0))
    assert up() is None


def test_troubles_are_counted(metrics: Metrics) -> None:
    for event in (
        SettleFailed("q", "a", "away"),
        SettleFailed("q", "a", "away"),
        HandlerAbandoned("q", 7),
        LoopBlocked("q", 1.5),
        LoopBlocked("q", 2.0),
    ):
        metrics(event)
    assert value(metrics, "oncue_settle_failures_total", queue="q") == 2
    assert value(metrics, "oncue_handlers_abandoned_total", queue="q") == 1
    assert value(metrics, "oncue_loop_blocked_seconds_total", queue="q") == 3.5


def test_queues_are_counted_apart(metrics: Metrics) -> None:
    for queue, times in (("a", 1), ("b", 2)):
        for _ in range(times):
            metrics(MessageDone(queue, "id", 1, 0.1, 0))
    assert value(metrics, "oncue_messages_total", queue="a", outcome="done") == 1
    assert value(metrics, "oncue_messages_total", queue="b", outcome="done") == 2


def test_every_event_there_is_can_be_heard(metrics: Metrics) -> None:
    for event in EVENTS:
        made = event(*("q" if field in {"queue", "id", "error"} else 1 for field in event.__struct_fields__))
        metrics(made)
    assert metrics.expose()


def test_all_names_are_well_formed_and_have_help(metrics: Metrics) -> None:
    metrics(MessageDone("q", "a", 1, 0.1, 0))
    found = families(metrics.expose({"q": QueueDepth(1, 2, 3, 4)}))
    assert set(found) == {
        "oncue_messages",
        "oncue_handler_seconds",
        "oncue_messages_in_flight",
        "oncue_broker_up",
        "oncue_settle_failures",
        "oncue_handlers_abandoned",
        "oncue_loop_blocked_seconds",
        "oncue_queue_messages",
    }
    assert all(family.documentation.endswith(".") for family in found.values())


def test_the_documentation_lists_all_metrics_with_their_labels(metrics: Metrics) -> None:
    page = (Path(__file__).parents[1] / "docs" / "events.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(oncue_\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    metrics(PumpStarted("q", 1))
    metrics(MessageDone("q", "a", 1, 0.1, 0))
    expected = {}
    for name, family in families(metrics.expose({"q": QueueDepth(1, 2, 3, 4)})).items():
        shown = f"{name}_total" if family.type == "counter" else name
        labels = sorted({label for each in family.samples for label in each.labels} - {"le"})
        expected[shown] = ", ".join(f"`{label}`" for label in labels)
    assert {name: ", ".join(sorted(labels.split(", "))) for name, labels in listed.items()} == expected


def test_without_a_registry_it_also_tells_of_the_process() -> None:
    found = families(Metrics().expose())
    assert {"python_info", "python_gc_collections"} <= set(found)
    assert Metrics().expose(), "each has a registry of its own"


def test_depths_that_are_not_known_are_absent(metrics: Metrics) -> None:
    def depth(text: bytes, queue: str, state: str) -> float | None:
        return sample(text, "oncue_queue_messages", queue=queue, state=state)

    text = metrics.expose({"q": QueueDepth(ready=3, leased=None, delayed=0, dead=None)})
    assert [depth(text, "q", state) for state in ("ready", "leased", "delayed", "dead")] == [3, None, 0, None]
    for unknown in (None, {}):
        assert b"oncue_queue_messages" not in metrics.expose(unknown)


def test_no_id_and_no_error_is_shown(metrics: Metrics) -> None:
    texts = {"queue": "q", "id": "secret", "error": "secret"}
    for event in EVENTS:
        metrics(event(*(texts.get(field, 1) for field in event.__struct_fields__)))
    assert b"secret" not in metrics.expose()


@in_virtual_time
async def test_it_counts_what_a_pump_does() -> None:
    world, metrics = await place("done", "retried", "dead"), Metrics(CollectorRegistry())
    world.events.subscribe(metrics)
    gate = asyncio.Event()

    async def handler(message: Message, attempt: int) -> Outcome:
        failure = Failure(PROCESSING_ERROR, "E", "e")
        if message.id == "dead":
            return Dead(failure)
        if message.id == "retried" and attempt == 1:
            return Retry(failure)
        await gate.wait()
        return Done()

    async with world.running(world.pump(handler, concurrency=3)):
        await world.heard.wait(MessageStarted, 4)
        assert value(metrics, "oncue_messages_in_flight", queue="q") == 2
        world.trouble.begin(ConnectionLostError("away"))
        await world.heard.wait(BrokerLost)
        assert value(metrics, "oncue_broker_up", queue="q") == 0
        world.trouble.end()
        gate.set()
        await world.heard.wait(MessageDone, 2)
    shown = {outcome: value(metrics, "oncue_messages_total", queue="q", outcome=outcome) for outcome in ENDS}
    assert shown == {"done": 2, "retried": 1, "dead": 1, "released": 0, "lost": 0}
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 0


@in_virtual_time
async def test_what_a_pump_could_not_settle_is_no_longer_in_flight_when_it_has_ended() -> None:
    world, metrics = await place("a"), Metrics(CollectorRegistry())
    world.events.subscribe(metrics)
    world.trouble.begin(ConnectionLostError("away"), "settle")
    work = Work()
    async with world.running(world.pump(work)):
        await world.heard.wait(SettleFailed)
        assert value(metrics, "oncue_messages_in_flight", queue="q") == 1
    assert value(metrics, "oncue_messages_in_flight", queue="q") == 0
