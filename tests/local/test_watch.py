"""What belongs to a handler, and which files were edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.local.watch import Modules, Watched


def tree(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def names(folder: Path, handler: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Modules().files(folder, handler)}


def test_a_module_and_what_it_imports_from_the_folder_belong_to_a_handler(folder: Path) -> None:
    tree(
        folder,
        main="import json, near\nfrom far import thing as other\n",
        near="",
        far="import third",
        third="",
        unused="",
    )
    assert names(folder, "main.handle") == {"main.py", "near.py", "far.py", "third.py"}


def test_packages_belong_with_their_init_files_and_relative_imports(folder: Path) -> None:
    (folder / "pack" / "deep").mkdir(parents=True)
    for name, text in {
        "pack/__init__.py": "from . import beside",
        "pack/beside.py": "",
        "pack/deep/__init__.py": "",
        "pack/deep/main.py": "from ..beside import x\nfrom .other import y\nfrom .. import third",
        "pack/deep/other.py": "",
        "pack/third.py": "",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert names(folder, "pack.deep.main.Class.method") == {
        "pack/__init__.py",
        "pack/beside.py",
        "pack/deep/__init__.py",
        "pack/deep/main.py",
        "pack/deep/other.py",
        "pack/third.py",
    }


def test_imports_inside_of_functions_count_and_circles_end(folder: Path) -> None:
    tree(folder, main="def f():\n    import other\n", other="import main")
    assert names(folder, "main.f") == {"main.py", "other.py"}


@pytest.mark.parametrize("text", ["def broken(:", "\x00", ""])
def test_a_file_that_cannot_be_read_belongs_all_the_same(folder: Path, text: str) -> None:
    tree(folder, main=text)
    assert names(folder, "main.f") == {"main.py"}


def test_a_handler_that_is_installed_elsewhere_has_no_files_here(folder: Path) -> None:
    assert names(folder, "json.dumps") == set()


def test_what_was_written_removed_or_added_has_changed_once(folder: Path) -> None:
    one, two, three = (folder / name for name in ("1", "2", "3"))
    one.touch()
    two.touch()
    watched = Watched([one, two])
    assert watched.changed([one, two]) == set()
    one.write_text("x", encoding="utf-8")
    two.unlink()
    three.touch()
    assert watched.changed([one, two, three]) == {one, two, three}
    assert watched.changed([one, two, three]) == set()


def test_imports_are_read_again_after_an_edit(folder: Path) -> None:
    tree(folder, main="import near\n", near="", far="")
    modules = Modules()
    assert folder / "near.py" in modules.files(folder, "main.f")
    tree(folder, main="import far  # now\n")
    assert modules.files(folder, "main.f") == {folder / "main.py", folder / "far.py"}
