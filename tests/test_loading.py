"""Importing the app that MODULE:APP names: the right one, or one line with the place of the real error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.core.errors import LoadError
from oncue.loading import load_app

GOOD = "from oncue import App\napp = App()\nother = 5\n@app.actor\ndef greet(name): ...\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path.startswith(str(tmp_path)):
            del sys.modules[name]


def refused(target: str, folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load_app(target, folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("target", ["jobs:app", "jobs", "pack.inner:app", "holder:Holder.app"])
def test_an_app_is_found(folder: Path, target: str) -> None:
    (folder / "jobs.py").write_text(GOOD)
    (folder / "pack").mkdir()
    (folder / "pack" / "inner.py").write_text(GOOD)
    (folder / "holder.py").write_text("import jobs\nclass Holder:\n    app = jobs.app\n")
    assert list(load_app(target, folder).actors) == ["greet"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\ndef x(:\n", "jobs.py:2: SyntaxError: invalid syntax"),
        ("def f():\npass\n", "jobs.py:2: IndentationError: expected an indented block after function definition on line 1"),
        ("import os\n\nint('x')\n", "jobs.py:3: ValueError: invalid literal for int() with base 10: 'x'"),
        ("import json\njson.loads('{')\n", "jobs.py:2: JSONDecodeError: "),
        ("import nosuchlib\n", "jobs.py:1: ModuleNotFoundError: No module named 'nosuchlib'"),
        ("from os import nosuchname\n", "jobs.py:1: ImportError: cannot import name 'nosuchname' from 'os'"),
        ("import sys\nsys.exit(3)\n", "jobs.py:2: SystemExit: the module ends the program (code 3)"),
        ("raise RuntimeError('two\\nlines')\n", "jobs.py:1: RuntimeError: two; lines"),
        ("raise RuntimeError\n", "jobs.py:1: RuntimeError: no text"),
        ("import deeper\n", "deeper.py:2: ZeroDivisionError: division by zero"),
        (GOOD + "@app.actor(name='greet')\ndef b(x): ...\n", "jobs.py:6: DuplicateActorError: two actors are called 'greet': "),
        ("from oncue import App\napp = App('nonsense')\n", "jobs.py:2: InvalidValueError: App url is 'nonsense', expected a URL"),
        ("from oncue import App\napp = App()\n@app.actor\ndef f(): ...\n", "jobs.py:3: ConfigError: "),
    ],
)  # fmt: skip
def test_an_app_file_that_cannot_be_run_is_named_with_the_line_of_the_real_error(
    folder: Path, source: str, expected: str
) -> None:
    (folder / "jobs.py").write_text(source)
    (folder / "deeper.py").write_text("def f():\n    return 1 / 0\nf()\n")
    assert refused("jobs:app", folder).startswith(expected)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("jbos:app", "no module 'jbos' in {folder} or on the Python path, did you mean 'jobs'?"),
        ("jobs.inner:app", "no module 'jobs.inner' in {folder} or on the Python path"),
        ("zzz.inner:app", "no module 'zzz' in {folder} or on the Python path"),
        ("jobs:ap", "jobs.py: module 'jobs' has no 'ap', did you mean 'app'?"),
        ("jobs:zzz", "jobs.py: module 'jobs' has no 'zzz'; it has app"),
        ("jobs:other", "jobs.py: jobs:other is of type int, expected an oncue.App; did you mean jobs:app?"),
        ("jobs:App", "jobs.py: jobs:App is the class App, expected an oncue.App; did you mean jobs:app?"),
        ("empty:app", "empty.py: module 'empty' has no 'app'; it has no app at all"),
        ("empty", "empty.py: module 'empty' has no app"),
        ("two", "two.py: module 'two' has 2 apps: say which, as in two:a"),
        ("jobs.py:app", "'jobs.py:app' is no app: expected MODULE:APP, did you mean jobs:app?"),
        ("jobs.py", "'jobs.py' is no app: expected MODULE:APP, did you mean jobs:app?"),
        ("./jobs.py:app", "'./jobs.py:app' is no app: expected MODULE:APP, did you mean jobs:app?"),
        ("a b:c", "'a b:c' is no app: expected MODULE:APP such as greetings:app"),
        ("", "'' is no app: expected MODULE:APP such as greetings:app"),
    ],
)
def test_a_name_that_leads_nowhere_gets_the_one_that_is_meant(folder: Path, target: str, expected: str) -> None:
    (folder / "jobs.py").write_text(GOOD)
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "two.py").write_text("from oncue import App\na = App()\nb = App()\nagain = a\n")
    assert refused(target, folder) == expected.format(folder=folder)


def test_the_real_error_is_the_cause(folder: Path) -> None:
    (folder / "jobs.py").write_text("1 / 0\n")
    with pytest.raises(LoadError) as caught:
        load_app("jobs:app", folder)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_ctrl_c_during_the_import_is_not_swallowed(folder: Path) -> None:
    (folder / "jobs.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_app("jobs:app", folder)
