"""An actor: a name, a function and settings; and the handler made of it: envelope in, function, envelopes out."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import msgspec
from msgspec import Raw

from oncue.context import Context, Named
from oncue.core.envelope import Envelope, check_turn, decode_envelope
from oncue.core.errors import InvalidEnvelopeError, InvalidValueError
from oncue.core.failure import EXPIRED_ERROR, PARSING_ERROR, Failure
from oncue.core.message import Message, Send
from oncue.core.outcome import Dead, Done, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.core.times import shown, timestamp
from oncue.dead import SENT_AT
from oncue.ends import NOWHERE, Ends
from oncue.outgoing import BRANCH, ENDS, Outgoing, check_actor_name
from oncue.transports.base import QueueSpec
from oncue.workloads import Routed, Workload
from oncue.workloads.signature import Signature, place_of, read_signature

P = ParamSpec("P")
R = TypeVar("R")

_IN_LOOP = 100
_IN_THREADS = 16
_LONGEST_TIME = 10 * 365 * 86400.0


class Sender(Protocol):
    """What an actor asks to send: its app."""

    def send(self, *args: Any, **options: Any) -> Awaitable[str]: ...
    def send_many(self, *args: Any, **options: Any) -> Awaitable[list[str]]: ...
    def call(self, *args: Any, **options: Any) -> Awaitable[Any]: ...


class Actor(Generic[P, R]):
    """A function that has a name and a queue. It can be called as before; `send` and `call` go through the queue."""

    def __init__(
        self,
        app: Sender,
        function: Callable[P, R],
        *,
        name: str | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        retry: RetryPolicy | None = None,
        lease: float = 60.0,
        fifo: bool = False,
        local_names: Mapping[str, Any] | None = None,
    ) -> None:
        self.function = function
        self.signature: Signature = read_signature(function, local_names)
        self.place = place_of(function)
        self.name = _check_name(getattr(function, "__name__", "") if name is None else name, self.place, given=name)
        self.timeout = None if timeout is None else _check_seconds("timeout", timeout, self.name)
        self.concurrency = _check_concurrency(concurrency, self.name, in_loop=self.signature.in_loop)
        self.retry = _check_retry(retry, self.name)
        self.lease = _check_seconds("lease", lease, self.name)
        self.fifo = fifo
        self._app = app
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, as if it were no actor."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<actor {self.name!r}: {self.place}>"

    def spec(self, prefix: str) -> QueueSpec:
        """The actor's queue."""
        return QueueSpec(name=prefix + self.name, lease=self.lease, fifo=self.fifo)

    async def send(
        self,
        payload: Any = None,
        *,
        delay: float = 0.0,
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """As `App.send` to this actor."""
        return await self._app.send(self, payload, delay=delay, id=id, key=key, route=route, headers=headers)

    async def send_many(
        self,
        payloads: Iterable[Any],
        *,
        delay: float = 0.0,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """As `App.send_many` to this actor."""
        return await self._app.send_many(self, payloads, delay=delay, route=route, headers=headers)

    async def call(
        self,
        payload: Any = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # part of the message's meaning, not only of the waiting
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> Any:
        """As `App.call` of this actor."""
        return await self._app.call(self, payload, timeout=timeout, id=id, key=key, route=route, headers=headers)


class ActorHandler:
    """The `Handler` of one actor: reads envelopes, asks the workload, sends on what it answers.

    `longest` is the largest body that the transport takes, None when there is no limit.
    """

    def __init__(
        self,
        name: str,
        workload: Workload,
        outgoing: Outgoing,
        *,
        max_attempts: int,
        ends: Ends = NOWHERE,
        longest: int | None = None,
    ) -> None:
        self._name = name
        self._answer = workload.answer
        self._prefix = outgoing.prefix
        self._compose = outgoing.compose_within
        self._max_attempts = max_attempts
        self._ends = ends
        self._longest = longest

    async def __call__(self, message: Message, attempt: int) -> Outcome:
        try:
            envelope = decode_envelope(message.body)
            check_turn(envelope, self._name)
        except InvalidEnvelopeError as error:
            return Dead(Failure(PARSING_ERROR, type(error).__name__, str(error), final=True))
        if envelope.extra and envelope.expired():
            return Dead(_expired(envelope))
        context = Context(
            envelope, self._name, attempt, last_attempt=attempt >= self._max_attempts, compose=self._compose
        )
        try:
            answer = await self._answer(envelope, context)
        finally:
            sends = context.end()
        if type(answer) is Raw:
            return self._go_on(message, sends, [envelope.next(answer, route=envelope.route.advanced())])
        if isinstance(answer, Retry | Dead | Release):
            return answer
        if isinstance(answer, Routed):
            return self._go_on(message, sends, [_routed(envelope, answer)])
        if not answer:
            kept, replies = self._ends.reached_early(envelope, message)
            return Done((*sends, *kept), replies)
        return self._go_on(message, sends, _branches(envelope, answer))

    def on_dead(self, message: Message, failure: Failure) -> Sequence[Send]:
        """What else goes out when `message` goes to the dead letters: word to those who wait for its end."""
        try:
            envelope = decode_envelope(message.body)
        except InvalidEnvelopeError:
            return self._ends.unreadable(failure, message)
        return self._ends.failed(envelope, failure, message, self._longest)

    def _go_on(self, message: Message, sends: Sequence[Send], envelopes: Sequence[Envelope]) -> Done:
        """Send each envelope to the actor whose turn it is, or to the ends when its route is finished."""
        headers = {**message.headers, SENT_AT: timestamp()} if message.headers else {SENT_AT: timestamp()}
        hops: list[Send] = []
        ended: list[Envelope] = []
        for each in envelopes:
            target = each.route.actor
            if target is None:
                ended.append(each)
            else:
                hops.append(Send(self._prefix + target, Message(each.encode(), each.id, headers, message.key)))
        if not ended:
            return Done((*sends, *hops))
        kept, replies = self._ends.reached(ended, message)
        return Done((*sends, *hops, *kept), replies)


def _routed(envelope: Envelope, answer: Routed) -> Envelope:
    return Envelope(envelope.id, answer.route, answer.payload, answer.headers, envelope.parent_id, answer.extra)


def _branches(envelope: Envelope, items: Sequence[Raw | Routed]) -> Sequence[Envelope]:
    """The envelopes of a fan-out.

    Item 0 keeps the id and item i has `<id>-<i>`, as in Asya. There, two fan-outs on one route give the same ids to
    different messages; here each level at which the id was kept before is written as `-0` in between.
    """
    advanced = envelope.route.advanced()
    place = branch_of(envelope.headers)
    kept = 0
    while kept < len(place) and place[-1 - kept][0] == 0:
        kept += 1
    stem = envelope.id + "-0" * kept
    children = []
    for index, item in enumerate(items):
        routed = item if isinstance(item, Routed) else Routed(item, advanced, envelope.headers, envelope.extra)
        children.append(
            Envelope(
                f"{stem}-{index}" if index else envelope.id,
                routed.route,
                routed.payload,
                {**routed.headers, BRANCH: [*place, [index, len(items)]]},
                envelope.id if index else envelope.parent_id,
                routed.extra,
            )
        )
    return children


def branch_of(headers: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
    """An envelope's place in the tree of fan-outs, `(index, count)` for each level; empty when there was none."""
    found = headers.get(BRANCH)
    if found is None:
        return ()
    try:
        place = msgspec.convert(found, list[tuple[int, int]])
    except msgspec.ValidationError:
        return ()  # somebody else's header of this name
    return place if all(0 <= index < count for index, count in place) else ()


def _expired(envelope: Envelope) -> Failure:
    deadline = timestamp(envelope.deadline)
    return Failure(EXPIRED_ERROR, "DeadlinePassed", f"the deadline {deadline} passed before its turn came", final=True)


def _check_name(name: object, place: str, *, given: str | None) -> str:
    hint = "" if given is not None else "; give it another with name="
    if not isinstance(name, str):
        raise InvalidValueError(f"{place}: actor name {name!r}: expected a text{hint}")
    if not name:
        raise InvalidValueError(f"{place} has no name: give it one with name=")
    try:
        check_actor_name(name)
    except InvalidValueError as error:
        raise InvalidValueError(f"{place}: {error}{hint}") from None
    if name in ENDS:
        raise InvalidValueError(f"{place}: {name!r} is the name of a built-in actor{hint}")
    return name


def _check_seconds(what: str, value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST_TIME:
        return value
    raise InvalidValueError(f"actor {name!r}: {what} is {shown(value)}, expected more than 0 seconds")


def _check_concurrency(value: object, name: str, *, in_loop: bool) -> int:
    if value is None:
        return _IN_LOOP if in_loop else _IN_THREADS
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise InvalidValueError(f"actor {name!r}: concurrency is {shown(value)}, expected a whole number from 1")


def _check_retry(value: object, name: str) -> RetryPolicy:
    if value is None:
        return RetryPolicy()
    if isinstance(value, RetryPolicy):
        return value
    raise InvalidValueError(f"actor {name!r}: retry is {value!r}, expected a Retry, such as Retry(max_attempts=5)")
