"""The Lua scripts that run in the server, each with what they have in common put before it. Nothing else touches a queue."""

from __future__ import annotations

import hashlib
from importlib.resources import files


class Script:
    """One script, known to a server by its digest once it was loaded there."""

    def __init__(self, name: str) -> None:
        folder = files(__name__)
        common = folder.joinpath("common.lua").read_text(encoding="utf-8")
        self.name = name
        self.source = (common + folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")).encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


TURN, DECLARE, DELETE, DEPTH, PEEK, READ, PURGE, RESTORE = SCRIPTS = tuple(
    map(Script, ("turn", "declare", "delete", "depth", "peek", "read", "purge", "restore"))
)
