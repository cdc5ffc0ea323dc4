"""What people import: the names are there, sorted, and documented, and the drawn tree of errors is the real one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

import oncue
from oncue.core import errors

PUBLIC = ["oncue", "oncue.testing"]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_its_names_in_order_and_has_them(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__)
    for exported in module.__all__:
        assert hasattr(module, exported), exported


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    for exported in module.__all__:
        value = getattr(module, exported)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), exported


def modules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(oncue.__path__, "oncue.") if "__main__" not in found.name]


@pytest.mark.parametrize("name", modules())
def test_every_module_can_be_imported_and_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or not Path(module.__file__ or "").read_text(encoding="utf-8").strip(), "has no docstring"


def drawn() -> dict[str, str]:
    """Each class of the tree in the docstring to the class it hangs from."""
    above: list[tuple[int, str]] = []
    parents = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}(?P<lines>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: {2,}|$)", line)
        if match is None:
            continue
        depth = len(match["lines"])
        above = [(other, name) for other, name in above if other < depth]
        parents[match["name"]] = above[-1][1] if above else "Exception"
        above.append((depth, match["name"]))
    return parents


def real(module: ModuleType) -> dict[str, str]:
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    return {error.__name__: error.__bases__[0].__name__ for error in classes if issubclass(error, BaseException)}


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    assert drawn() == real(errors)


APART = {
    "oncue.runtime": "one file that is mounted alone into foreign containers, and imports nothing of the package",
    "oncue.cli": "ends a command with one line; no other code ever sees it",
    "oncue.local": "talks to its own process only, and derives from the tree",
}
"""Packages whose errors no user of the library can meet, and why they may have some of their own."""


ALONE = (
    "oncue.runtime",
    "oncue.cli.",
    "oncue.local.",
    "oncue.transports.sqlite.store",
    "oncue.transports.nats.core",
    "oncue.transports.rabbitmq.amqp",
)
"""Where errors of their own never meet a user of the library: a file that imports nothing of ours, whole processes, a
transport's signal to itself, and a client that only its own transport uses."""


def test_every_error_of_the_package_is_in_the_one_tree() -> None:
    strangers = []
    for name in modules():
        if name.startswith(ALONE):
            continue
        module = importlib.import_module(name)
        if module is not errors and ".".join(name.split(".")[:2]) not in APART:
            strangers += [f"{name}.{error}" for error in real(module) if not error.startswith("_")]
    assert not strangers


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith(("oncue.cli", "oncue.local"))])
def test_an_error_outside_of_the_tree_still_derives_from_it(name: str) -> None:
    module = importlib.import_module(name)
    own = [getattr(module, error) for error in real(module)]
    assert all(issubclass(error, errors.OnCueError | click.ClickException) for error in own), own


def test_importing_the_library_imports_no_command_line_and_no_broker() -> None:
    code = "import sys, oncue; print([n for n in ('click', 'rich', 'aiohttp', 'yaml', 'redis', 'sqlite3') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "[]"
