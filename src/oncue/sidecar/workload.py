"""A runtime behind a Unix socket as a workload, ours over one lasting connection or Asya's over one for each message.

While the runtime is away nothing fails: calls wait for it, and what waits too long goes back to the queue uncounted.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from oncue.context import Context
from oncue.core.envelope import NO_EXTRA, NULL, Envelope, Route
from oncue.core.errors import InvalidValueError
from oncue.core.failure import CONNECTION_ERROR, PARSING_ERROR, PROCESSING_ERROR, ROUTING_ERROR, TIMEOUT_ERROR, Failure
from oncue.core.outcome import Dead, Release, Retry
from oncue.core.times import format_duration
from oncue.workloads import Answer, Routed
from oncue.workloads.socket import STOPPING_ERROR, Announced, Item, Reply, RuntimeClient, announced, exchange

_log = logging.getLogger("oncue.sidecar")

_PATIENCE = 10.0
"""Seconds that a message waits here for a runtime that is away, before another replica may have it."""
_LOOKS = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between looks for a runtime that is not there yet."""
_OWN = frozenset({PROCESSING_ERROR, PARSING_ERROR, TIMEOUT_ERROR})
"""The codes of failures that are the handler's own and not its surroundings'."""

_encode = msgspec.json.Encoder().encode


class RuntimeWorkload:
    """Answers calls by way of the runtime whose socket is `socket`.

    `timeout` is how many seconds one call may take. `attempts` bounds the attempts that fail by the handler's own fault;
    those that fail for another reason follow the pump's policy alone, and so do those that ask for a retry.
    """

    def __init__(self, socket: Path, *, timeout: float, attempts: int = 1) -> None:
        self._socket = socket
        self._timeout = timeout
        self._attempts = attempts
        self._client: RuntimeClient | None = None
        self._connecting = asyncio.Lock()
        self._alone = asyncio.Lock()
        self._foreign = False

    async def introduce(self) -> int:
        """Wait for the runtime, however long that takes; how many calls it works on at the same time. May be cancelled."""
        client = await self._connected()
        return 1 if client is None else client.hello.concurrency

    @property
    def present(self) -> bool:
        """Whether the runtime was there when it was last looked for."""
        return self._foreign or (self._client is not None and self._client.lost is None)

    async def answer(self, envelope: Envelope, context: Context) -> Answer:
        try:
            async with asyncio.timeout(_PATIENCE):
                client = await self._connected()
        except TimeoutError:
            return Release()
        if client is None:
            return await self._answer_foreign(envelope, context)
        try:
            reply = await self._call(client, envelope, context)
        except ConnectionResetError as error:
            return Retry(_lost(error))
        except ValueError as error:  # over the limit of the runtime's frames
            return Dead(Failure(PARSING_ERROR, "PayloadTooLarge", str(error), final=True))
        if reply.failure is not None:
            return self._failed(reply, context)
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
            results = [_result(item, envelope) for item in reply.items]
        except (InvalidValueError, msgspec.DecodeError) as error:
            return Dead(Failure(ROUTING_ERROR, type(error).__name__, str(error), final=True))
        return results[0] if len(results) == 1 else results

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _call(self, client: RuntimeClient, envelope: Envelope, context: Context) -> Reply:
        head: dict[str, Any] = {
            "actor": context.actor,
            "attempt": context.attempt,
            "last_attempt": context.attempt >= self._attempts,
        }
        if client.hello.mode == "envelope":
            return await client.call(
                envelope.encode(), envelope=True, fields=_encode(head), handler_timeout=self._timeout
            )
        head["message"] = {**envelope.fields(), **envelope.extra}
        return await client.call(envelope.payload, fields=_encode(head), handler_timeout=self._timeout)

    def _failed(self, reply: Reply, context: Context) -> Retry | Dead | Release:
        failure = reply.failure
        assert failure is not None
        if reply.bystander or failure.code == STOPPING_ERROR:
            return Release()
        own = failure.code in _OWN and failure.retry_after is None
        if failure.final or (own and context.attempt >= self._attempts):
            return Dead(failure)
        return Retry(failure)

    # Finding the runtime

    async def _connected(self) -> RuntimeClient | None:
        """The connection to a runtime of ours, made if there is none; None when the runtime speaks Asya's protocol alone."""
        client = self._client
        if client is not None and client.lost is None and not client.stopping:
            return client
        async with self._connecting:
            looks = 0
            while True:
                found = announced(self._socket.parent)
                if found is not None:
                    self._foreign = found.protocol == 0
                    if self._foreign and self._socket.exists():
                        return None
                    if not self._foreign and await self._connect(found):
                        return self._client
                await asyncio.sleep(_LOOKS[min(looks, len(_LOOKS) - 1)])
                looks += 1

    async def _connect(self, found: Announced) -> bool:
        client = self._client
        if client is not None and client.lost is None and not client.stopping:
            return True
        try:
            self._client = await RuntimeClient.connect(self._socket, kill=True)
        except OSError as error:
            _log.debug("the runtime at %s, protocol %d, does not answer: %s", self._socket, found.protocol, error)
            return False
        return True

    # Asya's protocol

    async def _answer_foreign(self, envelope: Envelope, context: Context) -> Answer:
        async with self._alone:  # such a runtime serves one connection after the other
            try:
                text = await exchange(self._socket, envelope.encode(), within=self._timeout)
                items = _decode_items(text)
            except TimeoutError:
                failure = Failure(
                    TIMEOUT_ERROR, "TimeoutError", f"Runtime timeout exceeded after {format_duration(self._timeout)}"
                )
                return self._failed(Reply(failure=failure), context)
            except ConnectionError as error:
                return Retry(_lost(error))
            except msgspec.DecodeError as error:
                return Retry(_lost(error, "failed to parse runtime response: "))
        for item in items:
            if item.error:
                told = item.details or _Details()
                failure = Failure(item.error, told.type or item.error, told.message, told.traceback)
                return self._failed(Reply(failure=failure), context)
        results = [
            Routed(item.payload, _route(item.route, envelope), item.headers or envelope.headers, envelope.extra)
            for item in items
        ]
        return results[0] if len(results) == 1 else results


class _Details(msgspec.Struct):
    message: str = ""
    type: str = ""
    traceback: str = ""


class _AsyaItem(msgspec.Struct):
    """One item of an answer in Asya's protocol."""

    payload: Raw = NULL
    route: dict[str, Raw] | None = None
    headers: dict[str, Any] | None = None
    error: str | None = None
    details: _Details | None = None


class _Rest(msgspec.Struct):
    """The part of an envelope beside its payload that a handler in envelope mode decides on."""

    route: dict[str, Raw] | None = None
    headers: dict[str, Any] | None = None


_decode_items = msgspec.json.Decoder(list[_AsyaItem]).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_KNOWN = frozenset({"id", "parent_id", "route", "headers", "payload"})


def _result(item: Item, envelope: Envelope) -> Raw | Routed:
    if not item.fields:
        return item.payload
    rest = _decode_rest(item.fields)
    extra = {name: raw.copy() for name, raw in _decode_fields(item.fields).items() if name not in _KNOWN}
    headers = envelope.headers if rest.headers is None else rest.headers
    return Routed(item.payload, _route(rest.route, envelope), headers, {**envelope.extra, **extra} or NO_EXTRA)


def _route(given: dict[str, Raw] | None, envelope: Envelope) -> Route:
    """The route as a runtime returned it; one that says nothing about it leaves it to go on by one."""
    if given is None or "actors" not in given:
        return envelope.route.advanced()
    actors: tuple[str, ...] = msgspec.json.decode(given["actors"], type=tuple[str, ...])
    current = msgspec.json.decode(given["current"], type=int) if "current" in given else 0
    extra = {name: raw.copy() for name, raw in given.items() if name not in {"actors", "current"}}
    return Route(actors, current, extra or envelope.route.extra)


def _lost(error: Exception, prefix: str = "") -> Failure:
    return Failure(CONNECTION_ERROR, type(error).__name__, f"{prefix}{error}")
