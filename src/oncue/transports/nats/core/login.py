"""How a client proves who it is: by name and password, by a token, by a key, or by a credentials file.

Keys sign what the server asks to be signed; the package nkeys does that, which is only imported where a key is used.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

_SECTION = re.compile(r"-----BEGIN (?P<name>NATS USER JWT|USER NKEY SEED)-----\s*(?P<text>\S+?)\s*-{2,}END ", re.DOTALL)


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """At most one way is given. Files are read anew for each connection, so that they may be renewed."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey: str | None = None

    def words(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What to tell the server that introduced itself with `info`.

        Raise `OSError` for a file that cannot be read, `ValueError` for one without what is needed, and `ImportError` where
        nkeys is not installed.
        """
        if self.credentials is not None:
            found = {each["name"]: each["text"] for each in _SECTION.finditer(_read(self.credentials))}
            if len(found) != 2:
                raise ValueError(f"{self.credentials} is no credentials file")
            signature, _ = _sign(found["USER NKEY SEED"], info)
            return {"jwt": found["NATS USER JWT"], "sig": signature}
        if self.nkey is not None:
            signature, public = _sign(_read(self.nkey).strip(), info)
            return {"nkey": public, "sig": signature}
        if self.token is not None:
            return {"auth_token": self.token}
        if self.user is not None:
            return {"user": self.user, "pass": self.password or ""}
        return {}

    def check(self) -> None:
        """Raise what `words` raises, before any server is asked."""
        self.words({"nonce": "nothing"})

    def __repr__(self) -> str:
        return "Login()"


def _read(path: str) -> str:
    return Path(path).read_text("utf-8")


def _sign(seed: str, info: Mapping[str, Any]) -> tuple[str, str]:
    """The server's nonce, signed, and the public key."""
    import nkeys  # type: ignore[import-not-found,import-untyped,unused-ignore]

    try:
        pair = nkeys.from_seed(seed.encode())
        signed = pair.sign(str(info.get("nonce", "")).encode())
        public = pair.public_key.decode()
    except Exception as error:
        raise ValueError(f"the seed of a key cannot be used: {type(error).__name__}") from None
    return base64.urlsafe_b64encode(signed).rstrip(b"=").decode(), public
