"""Runs the tests on every Python 3.11 or newer of this machine, one version after the other (make test).

    python scripts/test_all.py [ARGUMENTS FOR PYTEST]

Looks on the PATH and where pyenv, uv and Homebrew keep theirs. Of several of one minor version the first is taken. Says
which were found and which of the supported versions were not; exits with 1 if the tests fail on any of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import servers
from environments import MAIN, ROOT, ensure

OLDEST = (3, 11)
_SLOW = ("kafka", "nats", "pubsub", "sqs")
ONCE = (
    "tests/runtime",
    *(f"tests/transports/{name}" for name in _SLOW),
    *(f"tests/transports/conformance/test_{name}.py" for name in _SLOW),
)
"""Tests that would do the same on each Python: they run the runtime on all that there are, or wait for servers for minutes."""
WORKERS = 2 * (os.cpu_count() or 1)
"""So many tests run at once: most of them wait for other processes most of the time."""
PROBE = """
import sys, ensurepip, venv
i = sys.version_info
print(i.major, i.minor, sys.implementation.name, i.releaselevel, "%d.%d.%d" % i[:3])
"""


def candidates() -> Iterator[str]:
    """Programs that may be a Python, the one that runs this first."""
    yield sys.executable
    for minor in range(OLDEST[1], 30):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    if found := shutil.which("python3"):
        yield found
    home = Path.home()
    places = (
        (Path(os.environ.get("PYENV_ROOT", home / ".pyenv")), "versions/*/bin/python"),
        (Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python")), "*/bin/python3"),
        (Path("/opt/homebrew/bin"), "python3.[0-9]*[0-9]"),
        (Path("/usr/local/bin"), "python3.[0-9]*[0-9]"),
    )
    for folder, pattern in places:
        yield from sorted(str(path) for path in folder.glob(pattern))


def interpreters() -> dict[tuple[int, int], tuple[str, str]]:
    """The program and the full version of each minor version found, the oldest first."""
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for program in candidates():
        if Path(program).absolute().parent.resolve().is_relative_to(ROOT):
            continue  # it belongs to an environment that is made from one of the others
        try:
            probe = subprocess.run([program, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
        except OSError:
            continue
        if probe.returncode == 0:
            major, minor, name, level, version = probe.stdout.split()
            number = (int(major), int(minor))
            if name == "cpython" and level == "final" and number >= OLDEST:
                found.setdefault(number, (program, version))
    return dict(sorted(found.items()))


def supported() -> list[tuple[int, int]]:
    """The versions that pyproject.toml says the project works with."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    return [(int(a), int(b)) for a, b in re.findall(r"Python :: (\d+)\.(\d+)", "\n".join(classifiers))]


def _without(paths: Iterable[str], reason: str) -> list[str]:
    """Leave these out, and say so."""
    found = [path for path in paths if (ROOT / path).exists()]
    print(f"Without these, because {reason}: {', '.join(found)}", flush=True)
    return [f"--ignore={path}" for path in found]


def main(arguments: list[str]) -> int:
    """Test on each; the exit code."""
    found = interpreters()
    for number, (program, version) in found.items():
        print(f"Python {number[0]}.{number[1]}: {program} ({version})")
    missing = [f"{major}.{minor}" for major, minor in supported() if (major, minor) not in found]
    if missing:
        print(f"Not on this machine, so not tested here: Python {', '.join(missing)}")
    servers.main([])
    outcomes = {}
    for number, (program, version) in found.items():
        main_one = number == sys.version_info[:2]
        folder = MAIN if main_one else ROOT / ".venvs" / f"{number[0]}.{number[1]}"
        python = ensure(folder, program, "dev" if main_one else "test")
        print(f"\n=== The tests on Python {version} ===", flush=True)
        started = time.monotonic()
        command = [python, "-m", "pytest", "-n", str(WORKERS), "--dist", "worksteal", "-q", *arguments]
        if not main_one:
            command += _without(ONCE, f"they do the same on Python {sys.version_info[0]}.{sys.version_info[1]}")
        status = subprocess.run(command, check=False, cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        outcomes[version] = f"{'passed' if status == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s"
    print("\n" + "\n".join(f"Python {version}: {outcome}" for version, outcome in outcomes.items()))
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
