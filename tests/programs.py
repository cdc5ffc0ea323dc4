"""What tests need that run the project's programs as people do: the folder, and an environment without outside settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with `python` and `oncue` those that run the tests, no settings, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONCUE_", "ASYA_", "PYTEST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONWARNINGS": "error", **more}
