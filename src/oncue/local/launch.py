"""Command lines of child processes that do not outlive this process, however it ends; `tied` is what they run first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import oncue

RUNTIME = Path(oncue.__file__).with_name("runtime.py")
_TIED = Path(__file__).with_name("tied.py")


def runtime_words(python: str, name: str, *, kernel: bool = True) -> Sequence[str]:
    """The command line of a runtime under this Python; `name` is only for who looks at the list of processes.

    Without `kernel` it is tied by its standard input, on Linux too.
    """
    return [python, str(_TIED), str(os.getpid()), "kernel" if kernel else "pipe", str(RUNTIME), name]


def program_words(*words: str) -> Sequence[str]:
    """The command line of OnCue itself with these words."""
    return [sys.executable, str(_TIED), str(os.getpid()), "kernel", "oncue", *words]
