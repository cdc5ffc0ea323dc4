"""What becomes of a message between its arrival here and its end, where a transport keeps that itself."""

from __future__ import annotations

from enum import IntEnum

SUSPECT = 2
"""A message that was lost so often with whoever held it may be what ends its consumers."""


class Stage(IntEnum):
    WAITING = 0  # nobody has received it yet
    HELD = 1
    SETTLING = 2
    RETURNING = 3  # it goes back unseen
    OVER = 4
