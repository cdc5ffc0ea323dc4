"""For tests: of programs that use OnCue, and of transports that others write for it.

Names are loaded when they are first used, so that nothing here asks for pytest but the suites that need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oncue.testing.app import AppTest, app_test, run_app
    from oncue.testing.clock import VirtualTimeLoop, run_in_virtual_time
    from oncue.testing.conformance import TransportConformance

__all__ = ["AppTest", "TransportConformance", "VirtualTimeLoop", "app_test", "run_app", "run_in_virtual_time"]

_HOMES = {
    "AppTest": "oncue.testing.app",
    "TransportConformance": "oncue.testing.conformance",
    "VirtualTimeLoop": "oncue.testing.clock",
    "app_test": "oncue.testing.app",
    "run_app": "oncue.testing.app",
    "run_in_virtual_time": "oncue.testing.clock",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
