"""What was measured on one broker, as Markdown that reads well on a terminal too."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.brokers.ground import BARE, OURS, PEERS
from bench.rounds import Round, Work, median_cpu, median_rate, median_server, name, ratio


class Goals(NamedTuple):
    """What OnCue wants to reach on one broker: times the rate of others, milliseconds, a share, and hops a second."""

    drain: Mapping[str, float]
    send_many: float
    concurrent: float
    lone: float
    queues: float
    hops: float


REPID = "bench.brokers.contenders.repid"
GOALS = {
    "redis": Goals({REPID: 2.5, "": 8.0}, 3.0, 1.5, 1.5, 0.7, 10_000),
    "rabbitmq": Goals({"": 5.0}, 1.5, 1.5, 2.0, 0.7, 8_000),
    "nats": Goals({"": 3.0}, 1.5, 1.5, 2.0, 0.7, 8_000),
    "kafka": Goals({"": 5.0}, 1.0, 1.0, 10.0, 0.7, 8_000),
    "pubsub": Goals({"": 3.0}, 1.0, 1.0, 60.0, 0.7, 500),
    "sqs": Goals({"": 3.0}, 3.0, 3.0, 20.0, 0.7, 500),
}


class Drained(NamedTuple):
    """Jobs a second and processor seconds for 10,000 of them, once half are done; seconds until all queues are served; and
    connections."""

    rate: float
    cpu: float
    start: float
    connections: int


class Queues(NamedTuple):
    """The same jobs through one queue and through so many."""

    count: int
    jobs: int
    one: Drained
    many: Drained


def settings(contenders: Sequence[str], tuned: Mapping[str, str], versions: Mapping[str, Mapping[str, str]]) -> str:
    """What each contender uses, and which of its settings were the fastest."""
    lines = []
    for each in contenders:
        module = importlib.import_module(each)
        words = [", ".join(f"{package} {number}" for package, number in versions[each].items())]
        if hasattr(module, "SENDERS"):
            words.append(f"{module.SENDERS} senders")
        if each in tuned:
            words.append(f"drains with {tuned[each]}")
        lines.append(f"- {name(each)}: {'; '.join(words)}.")
    return "\n".join(lines) + "\n"


def rates(rounds: Sequence[Round], jobs: int) -> str:
    """The table of all rates."""
    lines = [
        f"{jobs:,} jobs in each of {len(rounds)} rounds, medians.",
        "",
        "| | jobs a second | CPU seconds for 10,000 | and the server's |",
        "|---|--:|--:|--:|",
    ]
    for work in rounds[0]:
        lines.append(
            f"| {_label(work)} | {median_rate(rounds, work):,.0f} | {median_cpu(rounds, work):.2f} "
            f"| {median_server(rounds, work):.2f} |"
        )
    return "\n".join(lines) + "\n"


def ratios(broker: str, rounds: Sequence[Round]) -> str:
    """How many times faster OnCue is than the others, round by round, and what it wants to be; nothing without any of them."""
    rows = []
    for what, ours, theirs, goal in _pairs(broker, rounds):
        found = ratio(rounds, ours, theirs)
        rows.append(
            f"| {what} | {found.median:.2f} | {found.lowest:.2f} | {found.highest:.2f} | {_times(goal, found.median)} |"
        )
    if not rows:
        return ""
    head = ["| OnCue is faster than | times, median | lowest | highest | goal |", "|---|--:|--:|--:|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _pairs(broker: str, rounds: Sequence[Round]) -> Iterator[tuple[str, Work, Work, float | None]]:
    goals = GOALS[broker]
    first = rounds[0]
    drain = Work(OURS, "drain")
    if drain not in first:
        return
    for theirs in first:
        if theirs.part == "drain" and theirs.contender != OURS:
            goal = goals.drain.get(theirs.contender, goals.drain[""]) if theirs.contender in PEERS else None
            yield f"{name(theirs.contender)}, drain", drain, theirs, goal
    for mode, goal in (("send_many", goals.send_many), ("concurrent", goals.concurrent)):
        ours = Work(OURS, "enqueue", mode)
        sends = [work for work in first if work.part == "enqueue" and work.contender in PEERS]
        if sends:
            theirs = max(sends, key=lambda work: median_rate(rounds, work))
            yield f"{_label(theirs)}, the fastest, by {mode}", ours, theirs, goal
        for theirs in first:
            if theirs.part == "enqueue" and theirs.contender == BARE:
                yield f"{_label(theirs)}, by {mode}", ours, theirs, None


def lone(broker: str, found: Mapping[str, Sequence[float]]) -> str:
    """The table of lone messages, in milliseconds."""
    lines = [
        "From the call that sends a message to the first line of its handler in another process, 50 messages a second.",
        "",
        "| | messages | median, ms | p99 | worst | goal |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for contender, took in found.items():
        ordered = sorted(took)
        median, p99 = statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        goal = _below(GOALS[broker].lone, median) if contender == OURS else ""
        lines.append(f"| {name(contender)} | {len(took)} | {median:.2f} | {p99:.2f} | {ordered[-1]:.2f} | {goal} |")
    return "\n".join(lines) + "\n"


def queues(broker: str, found: Queues) -> str:
    """The table of many queues in one process."""
    share, goal = found.many.rate / found.one.rate, GOALS[broker].queues
    verdict = f"{share:.0%} of one queue's rate, goal {goal:.0%}: {_said(share >= goal)}"
    rows = [
        f"{found.jobs:,} jobs, of which the second half is measured.",
        "",
        "| OnCue, one process | jobs a second | CPU seconds for 10,000 | seconds until all are served | connections | goal |",
        "|---|--:|--:|--:|--:|---|",
        f"| one queue | {_cells(found.one)} | |",
        f"| {found.count} queues, with a consumer each | {_cells(found.many)} | {verdict} |",
    ]
    return "\n".join(rows) + "\n"


def _cells(found: Drained) -> str:
    return f"{found.rate:,.0f} | {found.cpu:.2f} | {found.start:.2f} | {found.connections}"


def hops(broker: str, actors: int, rates_found: Sequence[float]) -> str:
    """What a sidecar and its runtime pass on."""
    rate, goal = statistics.median(rates_found) * actors, GOALS[broker].hops
    spread = ", ".join(f"{each:,.0f}" for each in rates_found)
    return (
        f"Through {actors} actors, each a sidecar with its runtime: {spread} messages a second to the end of the route, which is "
        f"{rate:,.0f} hops a second. Goal {goal:,.0f}: {_said(rate >= goal)}.\n"
    )


def _label(work: Work) -> str:
    return f"{name(work.contender)}: {work.part}" + (f", {work.mode}" if work.mode else "")


def _times(goal: float | None, reached: float) -> str:
    return "" if goal is None else f"{goal:g} times: {_said(reached >= goal)}"


def _below(goal: float, reached: float) -> str:
    return f"median below {goal:g} ms: {_said(reached < goal)}"


def _said(reached: bool) -> str:
    return "reached" if reached else "MISSED"
