"""Reports to Asya's gateway how far each envelope is: beside the messages' path, in order for each envelope, bounded.

No report slows or fails a message: what the gateway does not take in time is dropped, progress soon and the final word late.
"""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import Task
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from oncue.context import Context
from oncue.core.envelope import NULL, Envelope, decode_envelope
from oncue.core.errors import InvalidEnvelopeError
from oncue.core.message import Message, Send
from oncue.core.outcome import Done, Outcome
from oncue.core.retry import RetryPolicy
from oncue.core.times import timestamp
from oncue.middleware import Handler
from oncue.results import Status
from oncue.sidecar.actor import ActorSettings
from oncue.sidecar.observer import NOBODY, Nobody, Observer
from oncue.sidecar.posting import Poster
from oncue.workloads import Answer, Routed, Workload

_log = logging.getLogger("oncue.sidecar")

_MOST = 10_000
"""Reports that may wait; twice as many, when they are the last of an envelope."""
_PROGRESS = RetryPolicy(max_attempts=5, base=0.2, factor=1.0, jitter=0.0)
_FINAL = RetryPolicy(max_attempts=40, base=0.5, factor=2.0, cap=30.0)
"""For a quarter of an hour; the gateway takes the same final report any number of times."""
_STRANGERS = 10_000
_REFUSED = frozenset({400, 401, 403, 404, 405, 413, 422})
"""Answers that asking again does not change."""

_encode = msgspec.json.Encoder().encode


def observer_of(gateway: Gateway, actor: ActorSettings) -> Observer:
    """Who reports about this actor's messages: how far they are, or how their routes ended; nobody for another kind of end."""
    if actor.status is not None:
        return EndReports(gateway, actor.status)
    return NOBODY if actor.is_end else ActorReports(gateway, actor.name, [actor.prefix + actor.happy_end])


class Report(msgspec.Struct, frozen=True):
    """One thing to tell the gateway: where, and what."""

    path: str
    body: bytes
    final: bool = False


class Gateway:
    """Sends reports to the gateway at `url`, those of one envelope one after the other. Ended by `close`."""

    def __init__(self, url: str) -> None:
        self.dropped = 0
        self._poster = Poster(url)
        self._chains: dict[str, deque[Report]] = {}
        self._tasks: set[Task[None]] = set()
        self._waiting = 0
        # Envelopes that the gateway does not know, as of messages that were not sent through it.
        self._strangers: OrderedDict[str, None] = OrderedDict()
        self._troubled = False

    def tell(self, id: str, report: Report) -> None:
        """Have `report` sent after all others about the envelope `id`. Never blocks and never raises."""
        if id in self._strangers and not report.final:
            return
        if self._waiting >= (2 * _MOST if report.final else _MOST):
            self._drop(id, report, "too many reports wait")
            return
        self._waiting += 1
        chain = self._chains.get(id)
        if chain is not None:
            chain.append(report)
            return
        self._chains[id] = deque([report])
        task = asyncio.create_task(self._follow(id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, within: float) -> None:
        """Send what waits for `within` seconds at most, and drop the rest. May be called twice."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        if self._waiting:
            _log.warning("gateway.unreported", extra={"fields": {"reports": self._waiting}})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._poster.close()

    async def _follow(self, id: str) -> None:
        chain = self._chains[id]
        try:
            while chain:
                await self._send(id, chain[0])
                chain.popleft()
                self._waiting -= 1
        finally:
            del self._chains[id]

    async def _send(self, id: str, report: Report) -> None:
        policy = _FINAL if report.final else _PROGRESS
        for attempt in range(1, policy.max_attempts + 1):
            if id in self._strangers and not report.final:
                return
            status, why = await self._poster.post(report.path, report.body)
            if status in {200, 201}:
                self._say(why="")
                return
            if status in _REFUSED or (status == 500 and not report.final and attempt > 1):
                self._forget(id)
                break
            if attempt < policy.max_attempts:
                self._say(why)
                await asyncio.sleep(policy.backoff(attempt) * random.uniform(1 - policy.jitter, 1.0))
        self._drop(id, report, why)

    def _forget(self, id: str) -> None:
        self._strangers[id] = None
        if len(self._strangers) > _STRANGERS:
            self._strangers.popitem(last=False)

    def _drop(self, id: str, report: Report, why: str) -> None:
        self.dropped += 1
        level = logging.ERROR if report.final else logging.DEBUG
        _log.log(level, "gateway.dropped", extra={"fields": {"id": id, "path": report.path, "error": why}})

    def _say(self, why: str) -> None:
        """Tell once that the gateway is away, and once that it is back."""
        if bool(why) != self._troubled:
            self._troubled = bool(why)
            if why:
                _log.warning("gateway.lost", extra={"fields": {"error": why}})
            else:
                _log.info("gateway.back")


class ActorReports(Nobody):
    """Reports how far an actor is with each message."""

    def __init__(self, gateway: Gateway, actor: str, ends: Sequence[str]) -> None:
        """`ends` are the queues of finished routes."""
        self._gateway = gateway
        self._actor = actor
        self._ends = frozenset(ends)

    def middleware(self, handler: Handler) -> Handler:
        async def watched(message: Message, attempt: int) -> Outcome:
            envelope = _read(message)
            if envelope is None:
                return await handler(message, attempt)
            size = len(message.body) / 1024
            self._progress(envelope, "received", f"Received message ({size:.2f} KB)", message_size_kb=size)
            self._progress(envelope, "processing", f"Processing in {self._actor}")
            started = asyncio.get_running_loop().time()
            outcome = await handler(message, attempt)
            if isinstance(outcome, Done):
                took = round((asyncio.get_running_loop().time() - started) * 1000)
                self._completed(envelope, outcome.sends, took)
            return outcome

        return watched

    def _completed(self, envelope: Envelope, sends: Sequence[Send], took: int) -> None:
        """Report the way on of the first result, unless the route has ended early without one."""
        first = next((_read(send.message) for send in sends if send.message.id == envelope.id), None)
        if first is None or (first.route.current == envelope.route.current and first.route.actor is not None):
            return
        self._progress(envelope, "completed", f"Completed processing in {took}ms", first.route.actors, duration_ms=took)

    def _progress(
        self, envelope: Envelope, status: str, text: str, actors: Sequence[str] | None = None, **more: float
    ) -> None:
        body = {
            "actors": envelope.route.actors if actors is None else actors,
            "current_actor_idx": max(envelope.route.current, 0),
            "status": status,
            "message": text,
            **more,
        }
        self._gateway.tell(envelope.id, Report(f"/envelopes/{_quoted(envelope.id)}/progress", _encode(body)))


class Receiver(Protocol):
    """Takes reports, as a gateway does."""

    def tell(self, id: str, report: Report) -> None: ...


class EndReports(Nobody):
    """Reports how each route ended."""

    def __init__(self, gateway: Receiver, status: Status) -> None:
        self._gateway = gateway
        self._status: Status = status
        self._result: ContextVar[Raw | None] = ContextVar("result", default=None)

    def middleware(self, handler: Handler) -> Handler:
        async def watched(message: Message, attempt: int) -> Outcome:
            self._result.set(None)
            outcome = await handler(message, attempt)
            envelope = _read(message)
            if isinstance(outcome, Done) and envelope is not None:
                body = self._final(envelope, self._result.get())
                path = f"/envelopes/{_quoted(envelope.id)}/final"
                self._gateway.tell(envelope.id, Report(path, _encode(body), final=True))
            return outcome

        return watched

    def workload(self, workload: Workload) -> Workload:
        return _Answered(workload, self._result)

    def _final(self, envelope: Envelope, result: Raw | None) -> Mapping[str, Any]:
        told: dict[str, Any] = {"id": envelope.id, "status": self._status, "timestamp": timestamp()}
        if self._status == "succeeded":
            return {**told, "progress": 1.0, "result": envelope.payload if result is None else result}
        error, details = _failure(envelope.payload)
        route = envelope.route
        told |= {"error": error, "actors": route.actors, "current_actor_idx": max(route.current, 0)}
        if bytes(details) != b"null":
            told["error_details"] = details
        if route.actor is not None:
            told["current_actor_name"] = route.actor
        return told


class _Answered:
    """A workload whose first result is kept for the report."""

    def __init__(self, workload: Workload, result: ContextVar[Raw | None]) -> None:
        self._workload = workload
        self._result = result

    async def answer(self, envelope: Envelope, context: Context) -> Answer:
        answer = await self._workload.answer(envelope, context)
        first = answer[0] if isinstance(answer, list | tuple) and answer else answer
        payload = first.payload if isinstance(first, Routed) else first
        if isinstance(payload, Raw) and bytes(payload) not in {b"", b"null", b"{}"}:
            self._result.set(payload)
        return answer

    async def close(self) -> None:
        await self._workload.close()


class _Error(msgspec.Struct):
    error: str = ""
    details: Raw = NULL


def _failure(payload: Raw) -> tuple[str, Raw]:
    try:
        found = msgspec.json.decode(payload, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", NULL
    return found.error, found.details


def _read(message: Message) -> Envelope | None:
    try:
        return decode_envelope(message.body)
    except InvalidEnvelopeError:
        return None


def _quoted(id: str) -> str:
    from urllib.parse import quote

    return quote(id, safe="")
