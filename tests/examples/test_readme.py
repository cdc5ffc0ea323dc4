"""The README, the quickstart and the first page of the documentation, word for word: each is followed from top to bottom, in
an empty folder, by a shell and with real workers, and every output shown is what comes.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import ROOT, environment

PAGES = ["README.md", "docs/quickstart.md", "docs/index.md"]

ELSEWHERE = {"python3 -m venv .venv", ". .venv/bin/activate", "pip install oncue", "make demo", "make test"}
"""Commands that make the environment these tests run in, or run them; a fresh clone shows that they work."""

BLOCK = re.compile(r"^```(?P<kind>console|python|text|yaml)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"[Ss]ave this as `(?P<name>\w+\.(py|yaml))`")
WORKER = re.compile(r"oncue run [\w:]+")
UUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
AGE = re.compile(r"(?<=\s)(now|\d+s)(?=\s)")


class Step(NamedTuple):
    """A command of a page and what the page shows of its output."""

    command: str
    shown: str


def steps(text: str, folder: Path) -> list[Step]:
    """What a reader does: files are saved into `folder` at once, programs and commands are returned in order."""
    found: list[Step] = []
    for match in BLOCK.finditer(text):
        around = text[: match.start()].rsplit("\n\n", 2)[-2:] + text[match.end() :].split("\n\n", 2)[1:2]
        if match["kind"] == "console":
            commands = re.split(r"^\$ ", match["text"], flags=re.MULTILINE)[1:]
            found += [Step(*each.split("\n", 1)) for each in commands]
        elif match["kind"] == "text" and found:
            found[-1] = found[-1]._replace(shown=match["text"])
        elif match["kind"] in {"python", "yaml"}:
            saved = SAVED.search("\n".join(around))
            name = saved["name"] if saved else f"program_{match.start()}.py"
            (folder / name).write_text(match["text"], encoding="utf-8")
            if saved is None:
                found.append(Step(f"python {name}", ""))
    return [step for step in found if step.command not in ELSEWHERE]


def script(todo: list[Step]) -> str:
    """A shell script that does all of it; a worker in the foreground of its own terminal runs in the background here."""
    lines = ["workers="]
    for number, step in enumerate(todo):
        lines.append(f"echo '@@ {number}'")
        if WORKER.fullmatch(step.command):
            log = f"terminal-{number}.log"
            lines.append(f"{step.command} > {log} 2>&1 & until grep -q pump.started {log}; do sleep 0.1; done")
        else:
            lines.append(step.command)
        lines.append('echo "@@ exit $?"')
        if step.command.startswith("oncue run"):
            lines.append('workers="$workers $!"')
        if step.command.startswith("kill"):
            lines.append("workers=${workers% *}; wait $! 2> /dev/null")
    lines += ["kill -TERM $workers", 'for worker in $workers; do wait $worker; echo "@@ worker $?"; done']
    return "\n".join(lines) + "\n"


def plain(text: str) -> list[str]:
    """Lines in which ids, ages and the width of columns make no difference."""
    return [" ".join(AGE.sub("AGE", UUID.sub("ID", line)).split()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed_word_for_word(page: str, tmp_path: Path) -> None:
    todo = steps((ROOT / page).read_text(encoding="utf-8"), tmp_path)
    assert any(step.command.startswith("oncue run") for step in todo)
    done = subprocess.run(
        ["bash", "-c", script(todo)],
        cwd=tmp_path,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    outputs = re.findall(r"^@@ \d+\n(.*?)^@@ exit (\d+)$", done.stdout, re.MULTILINE | re.DOTALL)
    assert len(outputs) == len(todo), done.stdout
    for step, (output, status) in zip(todo, outputs, strict=True):
        assert status == "0", f"$ {step.command}\n{output}"
        if step.shown:
            assert plain(output) == plain(step.shown), f"$ {step.command}"
    ended = re.findall(r"^@@ worker (\d+)$", done.stdout, re.MULTILINE)
    assert ended
    assert set(ended) == {"0"}, done.stdout


def test_ids_and_ages_may_differ_and_nothing_else() -> None:
    one = "0e3fdb8f-7a8e-4b4a-9c7f-5f2a2b1f3c11  asya-greet    1s  1"
    assert plain(one) == plain("c0a4a4ab-45bf-4f7c-8a5f-0d3a3f0b9a52  asya-greet   now  1")
    assert plain(one) != plain("0e3fdb8f-7a8e-4b4a-9c7f-5f2a2b1f3c11  asya-greet    1s  2")
