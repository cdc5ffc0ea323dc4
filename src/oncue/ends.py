"""The end of a route: word to whoever waits for it, and the built-in end actors that keep results in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from oncue.core.envelope import NULL, Envelope, Route, decode_envelope
from oncue.core.errors import InvalidEnvelopeError, InvalidValueError, TransportClosedError, TransportError
from oncue.core.failure import CONNECTION_ERROR, PARSING_ERROR, PROCESSING_ERROR, TIMEOUT_ERROR, Failure
from oncue.core.message import Message, Send, check_queue_name, new_id
from oncue.core.outcome import Dead, Done, Outcome, Release, Retry
from oncue.core.retry import RetryPolicy
from oncue.core.times import parse_timestamp
from oncue.dead import SENT_AT
from oncue.outgoing import ERROR_END, FAILED, REPLY_TO, message_of

if TYPE_CHECKING:
    from oncue.results import Result, ResultStore, Status

KEEP_TRYING = RetryPolicy(max_attempts=2**31, base=1.0, factor=2.0, cap=60.0)
"""A result waits in its queue for as long as the store is away: it is work that was done, and the only word of it."""

_LONGEST_TRACEBACK = 8192


class Ends(msgspec.Struct, frozen=True):
    """Where the ends of routes go: to the queues of the end actors, each empty when results are not kept, and to the queue
    that the envelope itself names.

    `answers` says that who waits is told from here; what goes on to the end actors then asks for no answer any more, so that
    nobody is told twice or by none. With `asya` all is as Asya's sidecar has it:
    a route that ends early hands its envelope on as it came, and not with an empty payload, and some failures have a whole
    text in the place of their code, that of a timeout is `overtime`.
    """

    happy: str = ""
    error: str = ""
    answers: bool = True
    asya: bool = False
    overtime: str = ""

    def reached(self, envelopes: Sequence[Envelope], message: Message) -> tuple[Sequence[Send], tuple[Send, ...]]:
        """What goes out when `message` has led to the end of its route: what must arrive, and what may find nobody."""
        waiting = self._waiting(envelopes[0])
        if not self.happy and not waiting:
            return (), ()
        kept = [Send(self.happy, message_of(_answered(each, waiting), message.key)) for each in envelopes if self.happy]
        return kept, tuple([Send(waiting, message_of(each, message.key)) for each in envelopes if waiting])

    def reached_early(self, envelope: Envelope, message: Message) -> tuple[Sequence[Send], tuple[Send, ...]]:
        """As `reached` for a route that ends without a result; its `current` stays at the actor that ended it, as in Asya."""
        if self.asya:
            return self.reached([envelope], message)
        return self.reached([envelope.next(NULL, route=envelope.route)], message)

    def failed(self, envelope: Envelope, failure: Failure, message: Message, longest: int | None) -> Sequence[Send]:
        """What goes out, in the form of Asya's error envelope, when `message` is given up."""
        sends = []
        text = self._text(failure)
        waiting = self._waiting(envelope)
        if self.error:
            kept = _answered(envelope, waiting)
            told = message_of(kept.next(_error(failure, kept.payload, text), route=kept.route), message.key)
            if longest is not None and len(told.body) > longest:
                told = message_of(kept.next(_error(failure, None, text), route=kept.route), message.key)
            sends.append(Send(self.error, told))
        if waiting:
            answer = envelope.next(_error(failure, None), route=envelope.route).with_headers({FAILED: failure.code})
            sends.append(Send(waiting, message_of(answer)))
        return sends

    def unreadable(self, failure: Failure, message: Message) -> Sequence[Send]:
        """As `failed` for what is no envelope, with as much of it as can be read.

        Asya gives the error envelope an empty id, which its error-end refuses with an error envelope, and so on for ever; here
        it has the id of the message.
        """
        if not self.error:
            return ()
        route, payload = _readable(message.body)
        envelope = Envelope(message.id or new_id(), route, _error(failure, payload))
        return [Send(self.error, message_of(envelope, message.key))]

    def _text(self, failure: Failure) -> str:
        """What Asya's sidecar says of a failure of its own making; empty for what the runtime said."""
        if self.asya and failure.code == TIMEOUT_ERROR:
            return self.overtime
        return failure.message if self.asya and failure.code == CONNECTION_ERROR else ""

    def _waiting(self, envelope: Envelope) -> str:
        return _reply_queue(envelope.headers) if self.answers else ""


NOWHERE = Ends()


def _answered(envelope: Envelope, waiting: str) -> Envelope:
    """The envelope as it is kept once `waiting`, if that is anybody, is told from elsewhere."""
    if not waiting:
        return envelope
    headers = {name: value for name, value in envelope.headers.items() if name != REPLY_TO}
    return msgspec.structs.replace(envelope, headers=headers)


def replies_of(envelope: Envelope, message: Message, status: Status) -> tuple[Send, ...]:
    """What an end actor answers to who waits for the end of the route that `message` brought it.

    The headers stay, and with them the place in a fan-out. A route that ended early has no result.
    """
    if status == "failed":
        return tuple(NOWHERE.failed(envelope, read_failure(envelope.payload), message, None))
    if envelope.route.actor is None:
        return NOWHERE.reached([envelope], message)[1]
    return NOWHERE.reached_early(envelope, message)[1]


class KeepResult:
    """The `Handler` of an end actor: writes what arrives into a store, as the status `succeeded` or `failed`.

    Without a store nothing is kept. It also tells who waits for the end of the route, if nobody did before.
    """

    def __init__(self, store: ResultStore | None, status: Status) -> None:
        self._store = store
        self._status: Status = status

    async def __call__(self, message: Message, _attempt: int) -> Outcome:
        try:
            envelope = decode_envelope(message.body)
        except InvalidEnvelopeError as error:
            return Dead(Failure(PARSING_ERROR, type(error).__name__, str(error), final=True))
        if self._store is not None:
            try:
                await self._store.put(self._result(envelope, message))
            except TransportClosedError:
                return Release()
            except TransportError as error:
                return Retry(Failure.from_exception(error, code=PROCESSING_ERROR))
        return Done((), replies_of(envelope, message, self._status))

    def _result(self, envelope: Envelope, message: Message) -> Result:
        from oncue.results import Result

        return Result(
            id=envelope.id,
            status=self._status,
            actor=_last_actor(envelope),
            # Not the time of writing: of two attempts to write one result the second must not count as a later result.
            finished_at=parse_timestamp(message.headers.get(SENT_AT)) or datetime.now(UTC),
            envelope=message.body,
            parent_id=envelope.parent_id,
            failure=None if self._status == "succeeded" else read_failure(envelope.payload),
        )


class _Details(msgspec.Struct, omit_defaults=True):
    message: str = ""
    type: str = ""
    traceback: str = ""


class _ErrorPayload(msgspec.Struct, omit_defaults=True):
    """The payload of Asya's error envelope."""

    error: str
    details: _Details | None = None
    original_payload: Raw | msgspec.UnsetType = msgspec.UNSET


class _Place(msgspec.Struct, frozen=True):
    actors: tuple[str, ...] = ()
    current: int = 0


class _Placed(msgspec.Struct, frozen=True):
    route: _Place = _Place()


_EMPTY = Raw(b'""')

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_route = msgspec.json.Decoder(_Placed).decode
_decode_error = msgspec.json.Decoder(_ErrorPayload).decode


def _error(failure: Failure, original: Raw | None, text: str = "") -> Raw:
    if failure.type == InvalidEnvelopeError.__name__:  # Asya has the whole text where others have a code
        text = failure.message
    details = None
    if not text or failure.message != text:
        details = _Details(_plain(failure.message), failure.type, _plain(failure.traceback[-_LONGEST_TRACEBACK:]))
    told = _ErrorPayload(text or failure.code, details, msgspec.UNSET if original is None else original)
    return Raw(_encode(told))


def _readable(body: bytes) -> tuple[Route, Raw | None]:
    """The route and the payload of what is no envelope, as Asya tells of them: the payload if all of it is JSON, the route if
    nothing but the id is wrong."""
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Route((ERROR_END,)), None
    payload = fields.get("payload")
    try:
        found = _decode_route(body).route if "id" not in fields or fields["id"] == _EMPTY else None
    except (msgspec.DecodeError, RecursionError):
        found = None
    route = Route((ERROR_END,)) if found is None else Route(found.actors, found.current)
    return route, None if payload is None else payload.copy()


_TEXTS = {
    "Runtime timeout exceeded": TIMEOUT_ERROR,
    "failed to connect to runtime": CONNECTION_ERROR,
    "failed to send message to runtime": CONNECTION_ERROR,
    "failed to read response from runtime": CONNECTION_ERROR,
    "failed to parse runtime response": CONNECTION_ERROR,
}


def _plain(text: str) -> str:
    """`text` without what cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()


def read_failure(payload: Raw) -> Failure:
    """The failure that an error envelope tells of; whatever the payload is, a failure of some kind."""
    try:
        found = _decode_error(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failure(PROCESSING_ERROR, "UnknownError", "the error envelope does not say what went wrong")
    details = found.details or _Details(found.error, found.error)
    return Failure(_code_of(found.error), details.type or found.error, details.message, details.traceback)


def _code_of(error: str) -> str:
    """The code that `error` is or stands for: Asya's sidecar has a text there for failures of its own making."""
    for text, code in _TEXTS.items():
        if error.startswith(text):
            return code
    return error


def _reply_queue(headers: Mapping[str, Any]) -> str:
    name = headers.get(REPLY_TO)
    if not isinstance(name, str):
        return ""
    try:
        return check_queue_name(name)
    except InvalidValueError:
        return ""  # nobody can wait there, and the work itself is not to blame


def _last_actor(envelope: Envelope) -> str:
    route = envelope.route
    return route.actor or (route.actors[-1] if route.actors else "")
