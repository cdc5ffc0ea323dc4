"""The page about `oncue up` is followed word for word, and what it shows is what comes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from local.upping import oncue
from programs import EXAMPLES, ROOT, environment

BLOCK = re.compile(r"^```console\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_can_be_followed(folder: Path) -> None:
    shutil.copytree(EXAMPLES / "up", folder / "examples" / "up")
    page = (ROOT / "docs" / "up.md").read_text(encoding="utf-8")
    todo = re.split(r"^\$ ", BLOCK.findall(page)[0], flags=re.MULTILINE)[1:]
    assert len(todo) == 4
    try:
        for step in todo:
            command, shown = step.split("\n", 1)
            done = subprocess.run(
                ["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=60, check=False
            )
            assert (done.returncode, done.stdout) == (0, shown), done.stderr
    finally:
        oncue("down")
