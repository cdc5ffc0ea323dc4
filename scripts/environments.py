"""Makes the virtual environments that `make` works in, and remembers when one is up to date.

    python scripts/environments.py                  .venv with all tools (make setup)

Needs nothing but the standard library of a Python 3.11 or newer.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / ".venv"


def ensure(folder: Path, python: str, lock: str) -> str:
    """The Python of the environment `folder`, made or made anew by `python` unless it holds just what `lock` says."""
    path = str(folder / "bin" / "python")
    wanted = _wanted(folder, python, lock)
    stamp = folder / "up-to-date"
    if Path(path).exists() and stamp.exists() and stamp.read_text() == wanted:
        return path
    shown = folder.relative_to(ROOT)
    print(f"Making the environment {shown} with {python} (a minute or so, once) ...", flush=True)
    started = time.monotonic()
    _run([python, "-m", "venv", "--clear", str(folder)], _hint(python))
    install = [path, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--no-deps"]
    _run([*install, "--require-hashes", "-r", str(ROOT / "requirements" / f"{lock}.lock")])
    _run([*install, "--no-build-isolation", "-e", str(ROOT)])
    stamp.write_text(wanted)
    print(f"{shown} is ready after {time.monotonic() - started:.0f} s.", flush=True)
    return path


def _wanted(folder: Path, python: str, lock: str) -> str:
    version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout
    parts = [str(folder), version]
    parts += [(ROOT / name).read_text(encoding="utf-8") for name in (f"requirements/{lock}.lock", "pyproject.toml")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _run(command: list[str], hint: str = "") -> None:
    status = subprocess.run(command, check=False, cwd=ROOT).returncode
    if status:
        print(f"failed with exit code {status}: {' '.join(command)}{hint}", file=sys.stderr)
        raise SystemExit(1)


def _hint(python: str) -> str:
    if platform.system() != "Linux":
        return ""
    return f"\nIf {python} lacks the venv module: on Debian and Ubuntu it is the package python3-venv."


if __name__ == "__main__":
    ensure(MAIN, sys.executable, "dev")
