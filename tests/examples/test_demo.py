"""The demo, on a small library of its own: it loses nothing, says what is wrong, and can be stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from programs import EXAMPLES, environment

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
DEMO = [sys.executable, str(EXAMPLES / "demo/demo.py")]
PACKAGES = ("json", "email", "asyncio", "concurrent", "http", "importlib", "logging", "unittest", "xml")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Some of the standard library, with two files that do not parse."""
    folder = tmp_path / "library"
    for package in PACKAGES:
        shutil.copytree(STANDARD_LIBRARY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for copy in range(15):
        shutil.copytree(folder / "email", folder / f"email{copy}")
    (folder / "broken.py").write_text("def half(:\n", encoding="utf-8")
    (folder / "latin.py").write_bytes(b"name = '\xe4'\n")
    return folder


def processes_of(supervisor: int) -> list[str]:
    """The command lines of what this `oncue up` has started and that still runs."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"tied.py {supervisor} " in line]


def test_every_file_is_measured_or_failed_though_a_process_is_killed(library: Path, tmp_path: Path) -> None:
    command = [*DEMO, "--library", str(library)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    total = len(list(library.rglob("*.py")))
    assert f"{total:,} files: {total - 2:,} measured + 2 failed" in done.stdout
    assert done.stdout.count("✓") == 5
    assert re.search(r"^broken\.py +invalid syntax", done.stdout, re.MULTILINE)
    assert re.search(r"^latin\.py +\(unicode error\)", done.stdout, re.MULTILINE)
    assert re.search(r"killed process \d+ of measure/\d with SIGKILL", done.stdout)
    for actor in ("find", "measure", "summarise"):
        assert f"{actor}: 0 → " in done.stdout
    supervisor = re.search(r"has started, process (\d+)", done.stdout)
    assert supervisor and not processes_of(int(supervisor[1]))
    for words in re.findall(r"oncue (dead list measure|result list --status failed)$", done.stdout, re.MULTILINE):
        look = ["oncue", *words.split()]
        shown = subprocess.run(
            look, cwd=tmp_path / ".oncue/demo", env=environment(), capture_output=True, text=True, check=True
        )
        assert shown.stdout.count("SyntaxError") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_interrupted_and_leaves_no_process_behind(
    library: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [*DEMO, "--library", str(library)]
    demo = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout
    shown = ""
    for line in demo.stdout:
        shown += line
        if "measure: 0 → " in line:
            break
    supervisor = re.search(r"has started, process (\d+)", shown)
    assert supervisor, shown
    assert processes_of(int(supervisor[1]))
    os.killpg(demo.pid, number)
    shown = demo.stdout.read()
    assert demo.wait(20) == 130
    demo.stdout.close()
    assert "Stopped." in shown
    assert "Traceback" not in shown
    assert not processes_of(int(supervisor[1]))
    with pytest.raises(ProcessLookupError):
        os.kill(int(supervisor[1]), 0)


def test_a_report_that_lacks_a_file_is_not_called_right(library: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, report\n"
        "from rich.console import Console\n"
        "files = report.source_files(pathlib.Path('library'))\n"
        "dead = [str(each) for each in files if not report.parses(str(each))]\n"
        "failed = [(each, '') for each in dead]\n"
        "count = dict(functions=0, involved=0, complexity=0)\n"
        "rows = [dict(count, path=str(each), lines=report.count_lines(each)) for each in files if str(each) not in dead]\n"
        "wrong = dict(rows[0], lines=rows[0]['lines'] + 1)\n"
        "right = lambda *ended: report.check(Console(quiet=True), files, report.Ended(*ended))\n"
        "assert right(rows, failed, dead)\n"
        "assert not right(rows[1:], failed, dead)\n"
        "assert not right([wrong, *rows[1:]], failed, dead)\n"
        "assert not right([*rows, rows[0]], failed, dead)\n"
        "assert not right(rows, failed, dead[1:])\n"
        "assert not right(rows, failed[1:], dead[1:])\n"
        "assert not right(rows[1:], [*failed, (rows[0]['path'], '')], [*dead, rows[0]['path']])\n"
    )
    environ = environment(PYTHONPATH=str(EXAMPLES / "demo"))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True, capture_output=True)


@pytest.mark.parametrize("actors", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: path.parent.name)
def test_the_handlers_of_manifests_import_nothing_of_oncue(actors: Path) -> None:
    handlers = re.findall(r"ASYA_HANDLER, value: (\w+)\.", actors.read_text(encoding="utf-8"))
    assert handlers
    for module in handlers:
        source = (actors.parent / f"{module}.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) oncue", source, re.MULTILINE)
