"""What a handler knows about its attempt, and how it sends on the attempt's behalf. Public."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, Protocol

from oncue.core.envelope import Envelope
from oncue.core.errors import ConfigError, GiveUpError, RetryRequestedError
from oncue.core.message import Send, check_delay


class Named(Protocol):
    """Whatever has a name that stands for it: an actor."""

    @property
    def name(self) -> str: ...


class Compose(Protocol):
    """Makes the message that a handler sends while it works on `envelope`; `number` counts these from 0. Pure; raises
    `InvalidValueError` for what cannot be sent."""

    def __call__(
        self,
        envelope: Envelope,
        number: int,
        actor: str | Named,
        payload: Any,
        *,
        delay: float,
        id: str | None,
        key: str | None,
        route: Sequence[str | Named],
        headers: Mapping[str, Any] | None,
    ) -> Send: ...


class Context:
    """One attempt at one message. A handler gets it by annotating its second parameter with this class."""

    __slots__ = ("_compose", "_envelope", "_sends", "actor", "attempt", "last_attempt")

    actor: str
    """The name of the actor that works on it."""
    attempt: int
    """1 for the first attempt."""
    last_attempt: bool
    """Whether a failure of this attempt is final."""

    def __init__(self, envelope: Envelope, actor: str, attempt: int, *, last_attempt: bool, compose: Compose) -> None:
        self.actor = actor
        self.attempt = attempt
        self.last_attempt = last_attempt
        self._envelope = envelope
        self._compose = compose
        self._sends: list[Send] | None = []

    @property
    def id(self) -> str:
        """The id of the message; the same for every attempt, so that a repetition can be noticed."""
        return self._envelope.id

    @property
    def parent_id(self) -> str | None:
        """The id of the message that this one came from in a fan-out or by `send`; None for others."""
        return self._envelope.parent_id

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers of the envelope, which go along the whole route."""
        return self._envelope.headers

    @property
    def deadline(self) -> datetime | None:
        """When the work has lost its use, if the envelope says so."""
        return self._envelope.deadline

    def send(
        self,
        actor: str | Named,
        payload: Any = None,
        *,
        delay: float = 0.0,
        id: str | None = None,
        key: str | None = None,
        route: Sequence[str | Named] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Send with the acknowledgement of this message, and not at all if the attempt fails; return the new message's id.

        A plain method for handlers of any kind: nothing is sent yet when it returns, so it never blocks. Without `id` the
        id derives from this message's, so a repeated attempt sends under the same ids. Headers go along, those of `headers`
        laid over them. Raise `InvalidValueError` for what cannot be sent, and `ConfigError` once the attempt is over.
        """
        if self._sends is None:
            raise ConfigError(f"the attempt at message {self.id!r} is over: its context sends nothing any more")
        send = self._compose(
            self._envelope,
            len(self._sends),
            actor,
            payload,
            delay=delay,
            id=id,
            key=key,
            route=route,
            headers=headers,
        )
        self._sends.append(send)
        return send.message.id

    def retry(self, after: float | None = None, reason: str = "") -> NoReturn:
        """End the attempt and ask for another, after `after` seconds or as the actor's policy says.

        It counts as any failed attempt does: when it was the last one, the message goes to the dead letters.
        """
        raise RetryRequestedError(reason, None if after is None else check_delay(after))

    def dead(self, reason: str) -> NoReturn:
        """End the attempt and let no other follow: the message goes to the dead letters with `reason`."""
        raise GiveUpError(reason)

    def end(self) -> Sequence[Send]:
        """For who calls the handler: what it sent. From now on it sends nothing more."""
        sends, self._sends = self._sends, None
        return sends or ()
