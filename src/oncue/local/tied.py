"""Runs a program so that it does not outlive the process that started it: `tied.py PARENT kernel|pipe PROGRAM WORDS…`.

On Linux the kernel ends it. Elsewhere a small process beside it waits for the end of its standard input, a pipe that only the
parent holds. PROGRAM is a file, or `oncue`; a file is loaded as a module, so that its byte code is kept for the next start.
Started under the user's Python, 3.7 or later; imports nothing of oncue, and nothing of it stays importable.
"""

from __future__ import annotations

import importlib.util
import os
import sys

_PDEATHSIG, _KILL = 1, 9


def tie(parent: int, kernel: bool) -> None:
    """End this process when `parent` ends. Raises nothing."""
    if kernel:
        try:
            import ctypes

            kernel = ctypes.CDLL(None).prctl(_PDEATHSIG, _KILL) == 0
        except (ImportError, OSError, AttributeError):
            kernel = False
    if os.getppid() != parent:
        os._exit(0)
    me = os.getpid()
    if not kernel and os.fork() == 0:
        wait(me)


def wait(child: int) -> None:
    """In a process of its own: end `child` when standard input ends, and this process when `child` has."""
    import select

    os.setsid()
    os.closerange(1, 64)
    while os.getppid() == child:
        if select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
            os.kill(child, _KILL)
            break
    os._exit(0)


def run(program: str, words: list[str]) -> None:
    """Run it as if it had been started by itself."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    sys.argv[:] = [program, *words]
    if program == "oncue":
        import runpy

        runpy.run_module("oncue", run_name="__main__", alter_sys=True)
        return
    spec = importlib.util.spec_from_file_location("oncue_runtime", program)
    if spec is None or spec.loader is None:
        raise ImportError(program)
    module = importlib.util.module_from_spec(spec)
    sys.modules["oncue_runtime"] = module
    spec.loader.exec_module(module)
    sys.exit(module.main())


if __name__ == "__main__":
    tie(int(sys.argv[1]), sys.argv[2] == "kernel" and sys.platform == "linux")
    run(sys.argv[3], sys.argv[4:])
