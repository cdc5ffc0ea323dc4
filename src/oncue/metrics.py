"""What Prometheus is told: a listener that counts events, and the text format. `oncue.endpoints` serves it.

The numbers are kept as plain ones and only become Prometheus' objects when they are asked for, since each message adds to
several of them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.registry import Collector

from oncue.events import (
    BrokerBack,
    BrokerLost,
    Event,
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

OUTCOMES: Mapping[type[Event], str] = {
    MessageDone: "done",
    MessageRetried: "retried",
    MessageDead: "dead",
    MessageReleased: "released",
    LeaseLost: "lost",
}
"""The events that end an attempt, and what its outcome is called in metrics."""

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds, in seconds, of the buckets of the handlers' histogram: from a lookup to a long job."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `expose` returns."""
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Of what it returns as OpenMetrics."""

_NEVER = re.compile(r"q\s*=\s*0(\.0*)?")

_Ended = MessageDone | MessageRetried | MessageDead | MessageReleased | LeaseLost


def wants_open_metrics(accept: str) -> bool:
    """Whether a request whose `Accept` this is would take OpenMetrics, which is then given it, whatever it likes better."""
    for each in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        if kind == "application/openmetrics-text" and not any(_NEVER.fullmatch(one) for one in parameters):
            return True
    return False


class QueueDepth(msgspec.Struct, frozen=True):
    """How many messages of a queue wait, are leased, are delayed, and are dead; None where that is not known."""

    ready: int | None = None
    leased: int | None = None
    delayed: int | None = None
    dead: int | None = None


class _Counts:
    """The numbers of one queue."""

    __slots__ = (
        "abandoned",
        "blocked",
        "buckets",
        "outcomes",
        "pumps",
        "running",
        "seconds",
        "settle_failures",
        "up",
    )

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES.values(), 0)
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        # By id: an attempt that ends without having begun, because there were too many before it, is not among them.
        self.running: dict[str, int] = {}
        self.pumps = 0
        self.up = True
        self.settle_failures = 0
        self.abandoned = 0
        self.blocked = 0.0


class Metrics:
    """Subscribe it to `Events`; `expose` says what it has heard, in the text format of Prometheus.

    It registers itself with `registry`. Without one it has its own, which also tells of the process, of Python and of its
    garbage collector. To be used in the event loop's thread.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._queues: dict[str, _Counts] = {}
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)
        self._registry = registry
        registry.register(self)

    def __call__(self, event: Event) -> None:
        """Count `event`. Quick: it is called several times for each message."""
        count = _COUNT.get(type(event))
        if count is not None:
            counts = self._queues.get(event.queue)
            if counts is None:
                counts = self._queues[event.queue] = _Counts()
            count(counts, event)

    def expose(self, depths: Mapping[str, QueueDepth] | None = None, *, open_metrics: bool = False) -> bytes:
        """All metrics of the registry, and the depths of queues if they are known. What is not known is absent, not 0.

        With `open_metrics` it is OpenMetrics instead of the text format.
        """
        everything = _Everything([self._registry, _Depths(depths)] if depths else [self._registry])
        return generate_open_metrics(everything) if open_metrics else generate_latest(everything)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        """For the registry: the metrics of this moment."""
        queues = self._queues
        messages = CounterMetricFamily(
            "oncue_messages", "Attempts at messages that ended, by outcome.", labels=("queue", "outcome")
        )
        for queue, counts in queues.items():
            for outcome, number in counts.outcomes.items():
                messages.add_metric((queue, outcome), number)
        yield messages
        seconds = HistogramMetricFamily(
            "oncue_handler_seconds", "How long handlers took, whatever their outcome.", labels=("queue",)
        )
        bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
        for queue, counts in queues.items():
            filled = zip(bounds, accumulate(counts.buckets), strict=True)
            seconds.add_metric((queue,), list(filled), sum_value=counts.seconds)
        yield seconds
        yield from _simple(queues)

    def describe(self) -> Iterable[Metric]:
        """For the registry: nothing, as the names are known without collecting."""
        return []


def _simple(queues: Mapping[str, _Counts]) -> Iterator[Metric]:
    """The metrics that have one number for each queue."""
    shown: list[tuple[Metric, Callable[[_Counts], float | None]]] = [
        (
            GaugeMetricFamily(
                "oncue_messages_in_flight",
                "Messages whose handler began and that are not settled yet.",
                labels=["queue"],
            ),
            lambda counts: sum(counts.running.values()),
        ),
        (
            GaugeMetricFamily(
                "oncue_broker_up",
                "1 while the pump of the queue reaches the broker or store, else 0.",
                labels=["queue"],
            ),
            lambda counts: int(counts.up) if counts.pumps else None,
        ),
        (
            CounterMetricFamily("oncue_settle_failures", "Times that settling a message failed.", labels=["queue"]),
            lambda counts: counts.settle_failures,
        ),
        (
            CounterMetricFamily(
                "oncue_handlers_abandoned", "Handlers in threads that ran over their time.", labels=["queue"]
            ),
            lambda counts: counts.abandoned,
        ),
        (
            CounterMetricFamily(
                "oncue_loop_blocked_seconds", "How long leases could not be extended in time.", labels=["queue"]
            ),
            lambda counts: counts.blocked,
        ),
    ]
    for family, number in shown:
        for queue, counts in queues.items():
            value = number(counts)
            if value is not None:
                family.add_metric([queue], value)  # type: ignore[attr-defined]
        yield family


class _Everything:
    """Several collectors as one, for OpenMetrics has one end."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


class _Depths:
    """The depths of queues as a collector."""

    def __init__(self, depths: Mapping[str, QueueDepth]) -> None:
        self._depths = depths

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "oncue_queue_messages",
            "Messages in a queue, by state; dead ones are in its dead letters.",
            labels=("queue", "state"),
        )
        for queue, depth in self._depths.items():
            for state, number in msgspec.structs.asdict(depth).items():
                if number is not None:
                    family.add_metric((queue, state), number)
        yield family


def _started(counts: _Counts, event: MessageStarted) -> None:
    running = counts.running
    running[event.id] = running.get(event.id, 0) + 1


def _ended(counts: _Counts, event: _Ended) -> None:
    counts.outcomes[OUTCOMES[type(event)]] += 1
    running = counts.running
    same = running.pop(event.id, 0)
    if not same:
        return
    if same > 1:
        running[event.id] = same - 1
    counts.buckets[bisect_left(BUCKETS, event.seconds)] += 1
    counts.seconds += event.seconds


def _pump_started(counts: _Counts, _event: PumpStarted) -> None:
    counts.pumps += 1
    counts.up = True


def _pump_stopped(counts: _Counts, _event: PumpStopped) -> None:
    counts.pumps -= 1
    if not counts.pumps:
        counts.running.clear()


def _broker_lost(counts: _Counts, _event: BrokerLost) -> None:
    counts.up = False


def _broker_back(counts: _Counts, _event: BrokerBack) -> None:
    counts.up = True


def _settle_failed(counts: _Counts, _event: SettleFailed) -> None:
    counts.settle_failures += 1


def _handler_abandoned(counts: _Counts, _event: HandlerAbandoned) -> None:
    counts.abandoned += 1


def _loop_blocked(counts: _Counts, event: LoopBlocked) -> None:
    counts.blocked += event.seconds


_COUNT: Mapping[type[Event], Callable[[_Counts, Any], None]] = {
    MessageStarted: _started,
    **dict.fromkeys(OUTCOMES, _ended),
    PumpStarted: _pump_started,
    PumpStopped: _pump_stopped,
    BrokerLost: _broker_lost,
    BrokerBack: _broker_back,
    SettleFailed: _settle_failed,
    HandlerAbandoned: _handler_abandoned,
    LoopBlocked: _loop_blocked,
}
