"""What the documentation shows exists: links lead somewhere, code compiles, commands, options and extras are real."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from oncue import cli
from oncue.transports import base

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?P<kind>[a-z]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *kinds: str) -> list[str]:
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["kind"] in kinds]


def prose(path: Path) -> str:
    return BLOCK.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path) -> Iterator[list[str]]:
    """The commands that a page shows: in console blocks after `$`, and in `code` that begins with oncue or make."""
    lines = [line[2:] for block in blocks(path, "console") for line in block.splitlines() if line.startswith("$ ")]
    lines += [code for code in CODE.findall(prose(path)) if re.match(r"(oncue|make) [a-z]", code)]
    for line in lines:
        words = shlex.split(line, comments=True)
        current: list[str] = []
        for word in words:
            if word in {"|", "&&", ">", "<", "&", "||"}:
                yield current
                current = []
            else:
                current.append(word)
        yield current


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_link_leads_somewhere(path: Path) -> None:
    for match in LINK.finditer(prose(path)):
        target = match["target"]
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_python_block_compiles_and_imports_what_there_is(path: Path) -> None:
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "oncue":
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"from {node.module} import {name.name}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_command_shown_is_a_command_with_these_options(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in command_lines(path):
        if words and words[0] == "make":
            assert {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= targets, words
        if words and words[0] == "oncue":
            check_command(words)


def check_command(words: list[str]) -> None:
    command: click.Command = cli.main
    options = {"--help", "-h"}
    for word in words[1:]:
        child = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if child is not None:
            command = child
        elif isinstance(command, click.Group) and not word.startswith("-") and not options_with_value(command):
            pytest.fail(f"{shlex.join(words)}: no command {word}")
        options.update(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    asked = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert asked <= options, shlex.join(words)


def options_with_value(command: click.Command) -> bool:
    return any(isinstance(parameter, click.Option) and not parameter.is_flag for parameter in command.params)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_extra_named_exists(path: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for names in re.findall(r"oncue\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
        assert set(names.split(",")) <= set(known)


def test_every_page_can_be_reached_from_the_first() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.stem == "index" or re.search(rf"^{path.stem}$", index, re.MULTILINE), path.name


def test_the_capability_table_names_every_feature() -> None:
    generate = msgspec_names(ROOT / "docs/generate.py")
    assert generate == [field.name for field in msgspec.structs.fields(base.Features)]


def msgspec_names(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FEATURES":
            return list(ast.literal_eval(node.value))
    raise AssertionError("docs/generate.py has no FEATURES")


def test_the_readme_is_short_and_holds_the_whole_contract() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make demo" in text
    assert "make test" in text
    for contract in (base.Transport, base.Subscription, base.Lease):
        for name, value in vars(contract).items():
            if not name.startswith("_") and callable(value):
                assert re.search(rf"\b{name}\(", text), f"{contract.__name__}.{name}"
