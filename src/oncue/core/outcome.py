"""What a handler makes of one attempt: `Done`, `Retry`, `Dead` or `Release`."""

from __future__ import annotations

import msgspec

from oncue.core.failure import Failure
from oncue.core.message import Send


class Done(msgspec.Struct, frozen=True, gc=False):
    """The message is finished; `sends` go out with its acknowledgement, or neither happens.

    `replies` go out with it too, but one whose queue is gone is dropped: nobody waits for it any more.
    """

    sends: tuple[Send, ...] = ()
    replies: tuple[Send, ...] = ()


class Retry(msgspec.Struct, frozen=True):
    """The attempt failed; again after `delay` seconds, or after what the retry policy says when it is None."""

    failure: Failure
    delay: float | None = None


class Dead(msgspec.Struct, frozen=True):
    """The attempt failed and no other may follow: the message goes to the dead letters."""

    failure: Failure


class Release(msgspec.Struct, frozen=True):
    """The message was not worked on: it goes back at once and the attempt does not count."""


Outcome = Done | Retry | Dead | Release
