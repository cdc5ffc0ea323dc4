"""Asya's metrics of a sidecar, under Asya's names, labels and buckets, and the metrics that users declare.

What is counted is counted when it is settled. The label `queue` is the actor's name; `destination_queue` is a whole queue
name for what goes on and for finished routes, and the bare name of the end for the rest: as in Asya, whose dashboards
expect that.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from oncue.context import Context
from oncue.core.envelope import Envelope
from oncue.core.errors import InvalidEnvelopeError
from oncue.core.failure import EXPIRED_ERROR, PARSING_ERROR, PROCESSING_ERROR, ROUTING_ERROR, Failure
from oncue.core.kinds import CustomMetric
from oncue.core.message import Message, Send
from oncue.core.outcome import Dead, Done, Outcome, Retry
from oncue.events import (
    Event,
    LeaseLost,
    MessageDead,
    MessageDone,
    MessageReleased,
    MessageRetried,
    SettleFailed,
)
from oncue.middleware import Handler
from oncue.settle import OnDead
from oncue.sidecar.observer import Nobody
from oncue.workloads import Answer, Workload

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
RECEIVING = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
SENDING = RECEIVING[:-1]
SIZES = tuple(10.0**power for power in range(2, 10))

_ENDED = MessageDone | MessageRetried | MessageDead | MessageReleased | LeaseLost
_NOT_EXECUTED = frozenset({PROCESSING_ERROR, PARSING_ERROR, ROUTING_ERROR, EXPIRED_ERROR})
_FAULTS = {
    "Failed to parse message": "parse_error",
    "Envelope missing required 'id' field": "validation_error",
    "Route mismatch": "route_mismatch",
}


class _Distribution:
    """The numbers of one histogram for one set of labels."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]  # as programs in Go write them
        return list(zip(names, accumulate(self.counts), strict=True))


class _Attempt:
    """What is known of a message between its arrival and its end."""

    __slots__ = ("answered", "empty", "failure", "sends", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.answered = started
        self.empty = False
        self.failure: Failure | None = None
        self.sends: Sequence[Send] = ()


class AsyaMetrics(Nobody):
    """Watches one actor and hears its events; a collector for Prometheus' registry. In the event loop's thread."""

    def __init__(
        self,
        actor: str,
        *,
        queue: str,
        transport: str,
        happy_end: str,
        error_end: str,
        is_end: bool,
        namespace: str = "asya_actor",
        registry: CollectorRegistry,
    ) -> None:
        self._actor = actor
        self._queue = queue
        self._transport = transport
        self._happy, self._error = happy_end, error_end
        self._prefix = queue.removesuffix(actor)
        self._is_end = is_end
        self._namespace = namespace
        self._received = 0
        self._processed: dict[str, int] = {}
        self._sent: dict[tuple[str, str], int] = {}
        self._failed: dict[str, int] = {}
        self._execution_errors = 0
        self._processing = _Distribution(SECONDS)
        self._executing = _Distribution(SECONDS)
        self._receiving = _Distribution(RECEIVING)
        self._sending: dict[str, _Distribution] = {}
        self._sizes = {"received": _Distribution(SIZES), "sent": _Distribution(SIZES)}
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        self._current: ContextVar[_Attempt] = ContextVar("attempt")
        registry.register(self)

    # What is watched

    def middleware(self, handler: Handler) -> Handler:
        attempts, current, received = self._attempts, self._current, self._sizes["received"]

        async def watched(message: Message, attempt: int) -> Outcome:
            found = attempts[message.id, attempt] = _Attempt(time.perf_counter())
            current.set(found)
            self._received += 1
            received.add(len(message.body))
            outcome = await handler(message, attempt)
            found.answered = time.perf_counter()
            if isinstance(outcome, Done):
                found.sends = outcome.sends
            elif isinstance(outcome, Retry | Dead) and outcome.failure.code not in _NOT_EXECUTED:
                self._execution_errors += 1
            return outcome

        return watched

    def workload(self, workload: Workload) -> Workload:
        return _Timed(workload, self._executing, self._current)

    def on_dead(self, on_dead: OnDead) -> OnDead:
        def watched(message: Message, failure: Failure) -> Sequence[Send]:
            sends = on_dead(message, failure)
            for (id, _), found in self._attempts.items():
                if id == message.id:
                    found.failure, found.sends = failure, sends
            return sends

        return watched

    def waited(self, seconds: float) -> None:
        """A message came after so long."""
        self._receiving.add(seconds)

    def __call__(self, event: Event) -> None:
        """Count the end of an attempt."""
        if isinstance(event, SettleFailed) and event.queue == self._queue:
            self._count_failure("error_queue_send_failed" if self._is_dying(event.id) else "")
        if not isinstance(event, _ENDED) or event.queue != self._queue:
            return
        found = self._attempts.pop((event.id, event.attempt), None)
        if found is None:
            if isinstance(event, MessageDead):  # too many attempts: no handler saw it
                self._count_failure("runtime_error")
                self._count_sent(self._error, "error_end")
            return
        now = time.perf_counter()
        self._processing.add(now - found.started)
        if isinstance(event, MessageDone):
            self._done(found, now)
        elif isinstance(event, MessageDead):
            self._dead(found, now)

    def _done(self, found: _Attempt, now: float) -> None:
        status = "end_consumed" if self._is_end else "empty_response" if found.empty else "success"
        self._processed[status] = self._processed.get(status, 0) + 1
        for send in found.sends:
            if send.queue != self._prefix + self._happy:
                self._count_sent(send.queue, "routing")
            else:
                self._count_sent(self._happy if found.empty else send.queue, "happy_end")
            self._took(send, now - found.answered)

    def _dead(self, found: _Attempt, now: float) -> None:
        self._count_failure(_reason(found.failure))
        for send in found.sends:
            self._count_sent(self._error, "error_end")
            self._took(send, now - found.answered)

    def _is_dying(self, id: str) -> bool:
        return any(each == id and found.failure is not None for (each, _), found in self._attempts.items())

    def _count_failure(self, reason: str) -> None:
        if reason:
            self._failed[reason] = self._failed.get(reason, 0) + 1

    def _count_sent(self, queue: str, kind: str) -> None:
        self._sent[queue, kind] = self._sent.get((queue, kind), 0) + 1

    def _took(self, send: Send, seconds: float) -> None:
        found = self._sending.get(send.queue)
        if found is None:
            found = self._sending[send.queue] = _Distribution(SENDING)
        found.add(seconds)
        self._sizes["sent"].add(len(send.message.body))

    # What is told

    def collect(self) -> Iterator[Metric]:
        """For the registry: the metrics of this moment."""
        actor, transport = self._actor, self._transport
        yield self._counter("messages_received", "Messages received.", {(actor, transport): self._received}, "queue", "transport")  # fmt: skip
        yield self._counter("messages_processed", "Messages processed.", {(actor, status): count for status, count in self._processed.items()}, "queue", "status")  # fmt: skip
        yield self._counter("messages_sent", "Messages sent.", self._sent, "destination_queue", "message_type")
        yield self._counter("messages_failed", "Messages that failed.", {(actor, reason): count for reason, count in self._failed.items()}, "queue", "reason")  # fmt: skip
        yield self._counter("runtime_errors", "Calls of the runtime that brought no answer.", {(actor, "execution_error"): self._execution_errors}, "queue", "error_type")  # fmt: skip
        active = GaugeMetricFamily(f"{self._namespace}_active_messages", "Messages in work now.")
        active.add_metric([], len(self._attempts))
        yield active
        yield self._histogram("processing_duration_seconds", "From arrival to acknowledgement.", {(actor,): self._processing}, "queue")  # fmt: skip
        yield self._histogram("runtime_execution_duration_seconds", "How long the runtime took.", {(actor,): self._executing}, "queue")  # fmt: skip
        yield self._histogram("queue_receive_duration_seconds", "Waiting for a message.", {(actor, transport): self._receiving}, "queue", "transport")  # fmt: skip
        sending = {(queue, transport): found for queue, found in self._sending.items()}
        yield self._histogram("queue_send_duration_seconds", "Sending, with the acknowledgement.", sending, "destination_queue", "transport")  # fmt: skip
        sizes = {(direction,): found for direction, found in self._sizes.items()}
        yield self._histogram("envelope_size_bytes", "Size of envelopes.", sizes, "direction")

    def describe(self) -> Iterable[Metric]:
        """For the registry: nothing, as the names are known without collecting."""
        return []

    def _counter(self, name: str, text: str, numbers: Mapping[Any, int], *labels: str) -> Metric:
        family = CounterMetricFamily(f"{self._namespace}_{name}", text, labels=labels)
        for values, number in numbers.items():
            family.add_metric(values, number)
        return family

    def _histogram(self, name: str, text: str, found: Mapping[Any, _Distribution], *labels: str) -> Metric:
        family = HistogramMetricFamily(f"{self._namespace}_{name}", text, labels=labels)
        for values, each in found.items():
            family.add_metric(values, each.buckets(), sum_value=each.total)
        return family


class _Timed:
    """A workload whose answers are timed, and looked at for whether there were results."""

    def __init__(self, workload: Workload, executing: _Distribution, current: ContextVar[_Attempt]) -> None:
        self._workload = workload
        self._executing = executing
        self._current = current

    async def answer(self, envelope: Envelope, context: Context) -> Answer:
        started = time.perf_counter()
        answer = await self._workload.answer(envelope, context)
        self._executing.add(time.perf_counter() - started)
        if answer is None or (isinstance(answer, list | tuple) and not answer):
            self._current.get().empty = True
        return answer

    async def close(self) -> None:
        await self._workload.close()


def _reason(failure: Failure | None) -> str:
    if failure is None:
        return "runtime_error"
    if failure.type == InvalidEnvelopeError.__name__:
        return next((reason for text, reason in _FAULTS.items() if failure.message.startswith(text)), "parse_error")
    if failure.code == ROUTING_ERROR:
        return "routing_error"
    return "expired" if failure.code == EXPIRED_ERROR else "runtime_error"


def declare(metrics: Sequence[CustomMetric], registry: CollectorRegistry) -> None:
    """Register metrics that are only declared. Raise `ValueError` for a name that is taken."""
    taken = {metric.name for metric in registry.collect()}
    for each in metrics:
        if each.name.removesuffix("_total") in taken:
            raise ValueError(f"metric {each.name!r} is one of the sidecar's own")
        options: dict[str, Any] = {"registry": registry}
        if each.type == "histogram" and each.buckets:
            options["buckets"] = each.buckets
        kinds: Mapping[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        kinds[each.type](each.name, each.help or each.name, each.labels, **options)
