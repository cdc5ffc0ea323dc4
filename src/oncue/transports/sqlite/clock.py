"""The two clocks of a store, in whole microseconds.

Schedules follow the wall clock, so that they outlive a restart of the machine. Leases follow a clock that nobody can set;
it starts anew with the machine, and the machine's start has a name (`boot_id`) by which a store knows that all its leases
are from an earlier one.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

ORIGIN = 1 << 50
"""Added to the steady clock: every time then takes eight bytes, and changing one never changes the size of a row."""

_SYSTEM: str = sys.platform


def wall() -> int:
    """Time since 1970."""
    return time.time_ns() // 1000


def steady() -> int:
    """Time since the machine started, plus `ORIGIN`; the same for all processes, and no clock step touches it."""
    return ORIGIN + time.monotonic_ns() // 1000


def boot_id() -> str:
    """The name of the machine's present run; empty where the system has none."""
    try:
        if _SYSTEM == "linux":
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        if _SYSTEM == "darwin":
            return _sysctl(b"kern.bootsessionuuid")
    except (OSError, AttributeError):
        return ""
    return ""


def _sysctl(name: bytes) -> str:
    size = ctypes.c_size_t(64)
    found = ctypes.create_string_buffer(size.value)
    failed = ctypes.CDLL(None).sysctlbyname(name, found, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else found.value.decode("ascii", "replace")
