"""A runtime behind a Unix socket as a workload, ours over one lasting connection or Asya's over one for each message.

While the runtime is away nothing fails: messages wait for it, here or in their queue.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from oncue.context import Context
from oncue.core.envelope import Envelope
from oncue.core.errors import InvalidValueError
from oncue.core.failure import (
    CONNECTION_ERROR,
    CRASH_ERROR,
    PARSING_ERROR,
    PROCESSING_ERROR,
    ROUTING_ERROR,
    TIMEOUT_ERROR,
    Failure,
)
from oncue.core.outcome import Dead, Release, Retry
from oncue.core.times import go_duration
from oncue.sidecar.answers import Details, read_items, result_of, routed
from oncue.sidecar.link import Link
from oncue.sidecar.suspects import Suspects
from oncue.workloads import Answer
from oncue.workloads.socket import Reply, RuntimeClient, exchange

_OWN = frozenset({PROCESSING_ERROR, PARSING_ERROR, TIMEOUT_ERROR})
"""The codes of failures that are the handler's own and not its surroundings'."""

_DEADLY = frozenset({CRASH_ERROR, "exit_error", "oom_error"})
"""The codes of a runtime's answers when the handler's process has died."""

_STOPPING = "stopping_error"

_encode = msgspec.json.Encoder().encode


class RuntimeWorkload:
    """Answers calls by way of the runtime whose socket is `socket`.

    `timeout` is how many seconds one call may take. `attempts` bounds the attempts that fail by the handler's own fault;
    those that fail for another reason follow the pump's policy alone, and so do those that ask for a retry. `patience` is
    how many seconds a message waits here for a runtime that is away, before another replica may have it; None where
    giving it back would count against it.
    """

    def __init__(self, socket: Path, *, timeout: float, attempts: int = 1, patience: float | None = 10.0) -> None:
        self.link = Link(socket)
        self._socket = socket
        self._timeout = timeout
        self._attempts = attempts
        self._patience = patience
        self._alone = asyncio.Lock()
        self._suspects = Suspects()
        self._seen: RuntimeClient | None = None
        self._culprit: str | None = None
        self.overtime = f"Runtime timeout exceeded after {go_duration(timeout)}"

    async def answer(self, envelope: Envelope, context: Context) -> Answer:
        link = self.link
        if not link.there.is_set():
            try:
                async with asyncio.timeout(self._patience):
                    await link.there.wait()
            except TimeoutError:
                return Release()
        client = link.client
        if client is None:
            return await self._answer_foreign(envelope, context)
        try:
            if self._suspects:
                async with self._suspects.watch(envelope.id):
                    reply = await self._call(client, envelope, context)
            else:
                reply = await self._call(client, envelope, context)
        except ConnectionResetError as error:
            return self._lost(envelope, error)
        except ValueError as error:  # over the limit of the runtime's frames
            return Dead(Failure(PARSING_ERROR, "PayloadTooLarge", str(error), final=True))
        if reply.failure is not None:
            return self._failed(reply, reply.failure, envelope, context)
        self._suspects.survived(envelope.id)
        if len(reply.items) == 1 and not reply.items[0].fields and not reply.sends:
            return reply.items[0].payload
        return _taken(reply, envelope, context)

    async def close(self) -> None:
        await self.link.close()

    async def _call(self, client: RuntimeClient, envelope: Envelope, context: Context) -> Reply:
        self.link.calls[envelope.id] = None
        head: dict[str, Any] = {
            "actor": context.actor,
            "attempt": context.attempt,
            "last_attempt": context.attempt >= self._attempts,
        }
        try:
            if client.hello.mode == "envelope":
                return await client.call(
                    envelope.encode(), envelope=True, fields=_encode(head), handler_timeout=self._timeout
                )
            head["message"] = {**envelope.fields(), **envelope.extra}
            return await client.call(envelope.payload, fields=_encode(head), handler_timeout=self._timeout)
        except ConnectionResetError as error:
            self._died(client, str(error))
            raise
        finally:
            self.link.calls.pop(envelope.id, None)

    def _died(self, client: RuntimeClient, why: str) -> None:
        """The runtime went away, as the first of the calls that it had notices."""
        if self._seen is not client:
            self._seen = client
            self._culprit = self._suspects.watched
            self._suspects.died(self.link.calls)
            self.link.lost(why)

    def _lost(self, envelope: Envelope, error: Exception) -> Retry | Release:
        """What an attempt came to during which the runtime went away: it may have been the reason, or another one was."""
        if self._culprit is not None and self._culprit != envelope.id:
            return Release()
        return Retry(_connection(error, "failed to read response from runtime: "))

    def _failed(self, reply: Reply, failure: Failure, envelope: Envelope, context: Context) -> Retry | Dead | Release:
        if failure.code == _STOPPING:
            self.link.lost("it is stopping")
            return Release()
        if reply.bystander:
            return Release()
        if failure.code in _DEADLY:
            self._suspects.crashed(envelope.id)
        else:
            self._suspects.survived(envelope.id)
        return self._judged(failure, context)

    def _judged(self, failure: Failure, context: Context) -> Retry | Dead:
        own = failure.code in _OWN and failure.retry_after is None
        if failure.final or (own and context.attempt >= self._attempts):
            return Dead(failure)
        return Retry(failure)

    # Asya's protocol

    async def _answer_foreign(self, envelope: Envelope, context: Context) -> Answer:
        async with self._alone:  # such a runtime serves one connection after the other
            asking = asyncio.create_task(exchange(self._socket, envelope.encode()))
            try:
                await asyncio.wait([asking], timeout=self._timeout)
            except asyncio.CancelledError:
                asking.cancel()
                raise
            if not asking.done():
                self.link.occupied(asking)
                return self._judged(Failure(TIMEOUT_ERROR, "TimeoutError", self.overtime), context)
            try:
                items = read_items(asking.result()) or []
            except ConnectionError as error:
                if str(error).startswith("failed to connect"):  # nothing was sent
                    self.link.lost(str(error))
                    return Release()
                return Retry(_connection(error))
            except msgspec.DecodeError as error:
                return Retry(_connection(error, "failed to parse runtime response: "))
        for item in items:
            if item.error:
                told = item.details or Details(item.error, item.error)
                return self._judged(Failure(item.error, told.type, told.message, told.traceback), context)
        try:
            results = [routed(item, envelope) for item in items]
        except msgspec.DecodeError as error:
            return Retry(_connection(error, "failed to parse runtime response: "))
        return results[0] if len(results) == 1 else results


def _taken(reply: Reply, envelope: Envelope, context: Context) -> Answer:
    """The results of a reply; what the handler sent besides goes with them."""
    try:
        for sent in reply.sends:
            context.send(
                sent.actor,
                sent.payload,
                delay=sent.delay,
                id=sent.id,
                key=sent.key,
                route=sent.route,
                headers=sent.headers,
            )
        results = [result_of(item, envelope) for item in reply.items]
    except (InvalidValueError, msgspec.DecodeError) as error:
        return Dead(Failure(ROUTING_ERROR, type(error).__name__, str(error), final=True))
    return results[0] if len(results) == 1 else results


def _connection(error: Exception, prefix: str = "") -> Failure:
    return Failure(CONNECTION_ERROR, type(error).__name__, f"{prefix}{error}")
