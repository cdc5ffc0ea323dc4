"""Imports the app that `MODULE:APP` names, and says in one line what stands in the way. For the processes that run apps."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from oncue.app import App
from oncue.core.errors import LoadError
from oncue.core.settings import did_you_mean

_TARGET = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)(:(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*))?")
_HERE = Path(__file__).parent


def load_app(target: str, folder: Path) -> App:
    """The app that `target` (`MODULE:APP`, or `MODULE` when there is one app in it) names; `folder` becomes importable.

    Runs the module's code. Raise `LoadError` with the file and line of the real error.
    """
    match = _TARGET.fullmatch(target)
    if match is None or match["module"].endswith(".py"):
        raise LoadError(f"{target!r} is no app: expected MODULE:APP{_from_file_name(target, folder)}")
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    module = _import(match["module"], folder)
    return _find(module, match["name"]) if match["name"] else _only_app(module)


def _import(name: str, folder: Path) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}.") and not _frames_of(error, folder):
            close = did_you_mean(error.name, _modules_in(folder))
            raise LoadError(f"no module {error.name!r} in {folder.resolve()} or on the Python path{close}") from error
        raise LoadError(_where(name, error, folder)) from error
    except BaseException as error:  # what a module does at import is anything at all, sys.exit included
        raise LoadError(_where(name, error, folder)) from error


def _find(module: ModuleType, path: str) -> App:
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            apps = _apps_in(module)
            known = apps or [each for each in vars(module) if not each.startswith("_")]
            hint = did_you_mean(name, known) or (f"; it has {', '.join(apps)}" if apps else "; it has no app at all")
            raise LoadError(f"{_file_of(module)}: module {module.__name__!r} has no {path!r}{hint}")
        found = getattr(found, name)
    if not isinstance(found, App):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        apps = _apps_in(module)
        hint = f"; did you mean {module.__name__}:{apps[0]}?" if len(apps) == 1 else ""
        raise LoadError(f"{_file_of(module)}: {module.__name__}:{path} is {kind}, expected an oncue.App{hint}")
    return found


def _only_app(module: ModuleType) -> App:
    apps = _apps_in(module)
    if len(apps) != 1:
        has = f"has {len(apps)} apps" if apps else "has no app"
        named = f": say which, as in {module.__name__}:{apps[0]}" if apps else ""
        raise LoadError(f"{_file_of(module)}: module {module.__name__!r} {has}{named}")
    app: App = getattr(module, apps[0])
    return app


def _apps_in(module: ModuleType) -> list[str]:
    found: dict[int, str] = {}
    for name, value in vars(module).items():
        if isinstance(value, App):
            found.setdefault(id(value), name)
    return list(found.values())


def _from_file_name(target: str, folder: Path) -> str:
    file, _, name = target.partition(":")
    if not file.endswith(".py") and "/" not in file:
        return " such as greetings:app"
    path = Path(file.removesuffix(".py"))
    parts = [part for part in path.parts if part not in {".", "/"}]
    inside = not path.is_absolute() and (folder / path).with_suffix(".py").exists()
    return f", did you mean {'.'.join(parts)}:{name or 'app'}?" if inside else " such as greetings:app"


def _modules_in(folder: Path) -> Sequence[str]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return ()
    return [each.stem for each in entries if each.suffix == ".py" or (each / "__init__.py").exists()]


def _file_of(module: ModuleType) -> str:
    return _short(getattr(module, "__file__", None) or module.__name__)


def _where(module: str, error: BaseException, folder: Path) -> str:
    """`file:line: Type: text`, at the place in the user's own code that is closest to the error that `module` raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno or 1}: {type(error).__name__}: {error.msg}"
    frames = _frames_of(error, folder)
    place = f"{_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else module
    return f"{place}: {type(error).__name__}: {_text(error)}"


def _frames_of(error: BaseException, folder: Path) -> Sequence[traceback.FrameSummary]:
    """The frames of `error` that are the user's: those under `folder`, else all that are not ours or the import system's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not Path(frame.filename).is_relative_to(_HERE)
    ]
    frames = [frame for frame in frames if frame.filename != importlib.__file__]
    inside = [frame for frame in frames if _is_inside(frame.filename, folder)]
    return inside or frames


def _is_inside(file: str, folder: Path) -> bool:
    path = Path(file)
    root = folder.resolve()
    return path.is_relative_to(root) and not {"site-packages", "dist-packages"} & set(path.parts)


def _short(file: str) -> str:
    path = Path(file)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _text(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the module ends the program (code {error.code})"
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or "no text"
