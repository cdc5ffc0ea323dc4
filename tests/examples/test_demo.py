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
DEMO = [sys.executable, str(EXAMPLES / "demo.py")]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Some of the standard library, with a file that does not parse."""
    folder = tmp_path / "library"
    for package in ("json", "email", "asyncio", "concurrent", "http", "importlib", "logging", "unittest", "xml"):
        shutil.copytree(STANDARD_LIBRARY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "broken.py").write_text("def half(:\n", encoding="utf-8")
    (folder / "latin.py").write_bytes(b"name = '\xe4'\n")
    return folder


def files_in(library: Path) -> int:
    return len(list(library.rglob("*.py")))


def test_every_file_is_measured_or_a_dead_letter_though_a_worker_is_killed(library: Path, tmp_path: Path) -> None:
    command = [*DEMO, "--library", str(library)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    total = files_in(library)
    assert f"{total} files: {total - 2} measured + 2 dead" in done.stdout
    assert done.stdout.count("✓") == 4
    assert re.search(r"^broken\.py +invalid syntax", done.stdout, re.MULTILINE)
    assert re.search(r"^latin\.py +\(unicode error\)", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) < 120
    listing = re.search(r"oncue (dead list measure --transport \S+)", done.stdout)
    assert listing
    shown = subprocess.run(
        ["oncue", *listing[1].split()], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert shown.stdout.count("SyntaxError") == 2


def test_it_can_be_interrupted_and_leaves_no_process_behind(library: Path, tmp_path: Path) -> None:
    for number in range(20):
        shutil.copytree(library / "email", library / f"email{number}")
    command = [*DEMO, "--library", str(library)]
    demo = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stdout
    shown = ""
    for line in demo.stdout:
        shown += line
        if "worker 2 started" in line:
            break
    workers = [int(pid) for pid in re.findall(r"started, process (\d+)", shown)]
    os.killpg(demo.pid, signal.SIGINT)
    shown = demo.stdout.read()
    assert demo.wait(20) == 130
    demo.stdout.close()
    assert "Stopped." in shown
    assert "Traceback" not in shown
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_report_that_lacks_a_file_is_not_called_right(library: Path, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; os.environ['DEMO_REPORT'] = 'report.db'\n"
        "import demo, sourcecode\n"
        "files = demo.source_files(pathlib.Path('library'))\n"
        "add = 'INSERT INTO files VALUES (?, ?, 0, 0, ?, 0, ?, 1)'\n"
        "dead = {each: '' for each in map(str, files) if not demo.parses(each)}\n"
        "rows = [(str(each), demo.count_lines(each), '', '') for each in files if str(each) not in dead]\n"
        "sourcecode.make_report()\n"
        "opened = sourcecode.open_report()\n"
        "report = opened.__enter__()\n"
        "report.executemany(add, rows)\n"
        "assert demo.check(files, dead)\n"
        "report.execute('DELETE FROM files WHERE path = ?', rows[0][:1])\n"
        "assert not demo.check(files, dead)\n"
        "report.execute(add, (rows[0][0], rows[0][1] + 1, '', ''))\n"
        "assert not demo.check(files, dead)\n"
    )
    environ = environment(PYTHONPATH=str(EXAMPLES))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True, capture_output=True)
