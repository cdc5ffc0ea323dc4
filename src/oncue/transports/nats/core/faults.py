"""Why something came to nothing. Texts are the server's, and may hold secrets."""

from __future__ import annotations

import msgspec


class ClosedError(Exception):
    """The connection is over. `denied` says that the server does not want this user, or not here."""

    def __init__(self, text: str, *, denied: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.denied = denied


class DeniedError(Exception):
    """This user may not publish or subscribe to that subject; the connection goes on."""


class SilentError(Exception):
    """Nobody answered in time; the connection goes on."""


class Refusal(msgspec.Struct):
    """What a service of the server answers when it does not do what was asked."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class RefusedError(Exception):
    """A service did not do what it was asked; `refusal.err_code` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.description} ({refusal.err_code or refusal.code})")
        self.refusal = refusal
