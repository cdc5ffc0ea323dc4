"""Settings, loading, and what is said when either does not go."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from runtime.beside import NEWEST, OLDEST, USERS, Beside, run

from oncue.core.failure import Failure
from oncue.workloads.socket import announced, load_error

UNLOADABLE = [
    ("handlers", "expected module.function or module.Class.method"),
    ("handlers.echo.", "expected module.function or module.Class.method"),
    ("nowhere.work", "there is no module 'nowhere' (looked in "),
    ("package.nothing.work", "has no 'nothing'"),
    ("handlers.ecko", "has no 'ecko', did you mean 'echo'?"),
    ("handlers.Model.proces", "class 'Model' has no 'proces', did you mean 'process'?"),
    ("handlers.Model.process.more", "not 'Model.process.more'"),
    ("handlers.Model", "'Model' is a class; name a method of it, as in handlers.Model.process"),
    ("handlers.echo.more", "'echo' in module 'handlers'"),
    ("handlers.value", "'value' is no function but a int"),
    ("handlers.Needy.process", "class 'Needy' needs an argument for 'name': give it a default"),
    ("handlers.Broken.process", "OSError: no model here (" + str(USERS / "handlers.py") + ", line "),
    ("missing_import.work", "ModuleNotFoundError: No module named 'not_installed_anywhere' ("),
    ("missing_import.work", str(USERS / "missing_import.py") + ", line 1)"),
    ("leaves.work", "SystemExit: no licence ("),
    ("aborts.work", "its process was killed by SIGABRT while loading"),
]


@pytest.mark.parametrize(("handler", "text"), UNLOADABLE)
def test_a_handler_that_cannot_be_loaded_is_named_with_the_real_reason(handler: str, text: str, tmp_path: Path) -> None:
    ended = run(OLDEST, tmp_path, handler)
    assert ended.returncode == 1
    assert f"CRITICAL - Cannot load handler '{handler}': " in ended.stderr
    assert text in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runtime-error"]
    told = load_error(tmp_path)
    assert isinstance(told, Failure)
    assert (told.code, text in told.message) == ("load_error", True)


def test_the_same_reasons_are_given_on_every_python(python: Path, tmp_path: Path) -> None:
    for handler, text in UNLOADABLE[9:]:
        assert text in run(python, tmp_path, handler).stderr
    assert "runtime.py" not in run(python, tmp_path, "missing_import.work").stderr


def test_a_mistake_in_the_grammar_is_named_with_its_place(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "typo.py"
    source.write_text("def work(payload):\n    return (\n")
    ended = run(python, tmp_path / "socket", "typo.work", cwd=tmp_path)
    assert f"({source}, line " in ended.stderr
    assert "Cannot load handler 'typo.work': SyntaxError: " in ended.stderr


async def test_a_start_that_works_takes_the_old_reason_away(python: Path) -> None:
    beside = Beside(python, "package.inner.work")
    (beside.folder / "runtime-error").write_text("{}")
    (beside.folder / "runtime-ready").write_text("old")
    async with beside:
        assert sorted(path.name for path in beside.folder.iterdir()) == ["asya-runtime.sock", "runtime-ready"]
        assert (await beside.send(1))[0]["payload"] == "from a package"


async def test_the_ready_file_says_what_is_spoken(python: Path) -> None:
    async with Beside(python, "handlers.echo", ONCUE_CONCURRENCY="3") as beside:
        assert (beside.folder / "runtime-ready").read_text().startswith("ready\n")
        found = announced(beside.folder)
        assert found is not None
        assert found.protocol == 1
        assert found.hello is not None
        assert (found.hello.handler, found.hello.mode, found.hello.concurrency) == ("handlers.echo", "payload", 3)
        assert found.hello.pid == beside.pid


def test_the_ready_file_of_a_stranger_means_asyas_protocol(tmp_path: Path) -> None:
    assert announced(tmp_path) is None
    (tmp_path / "runtime-ready").write_text("ready")
    found = announced(tmp_path)
    assert found is not None
    assert found.protocol == 0


FAULTS = [
    ({"ASYA_HANDLER_MODE": "both"}, "ASYA_HANDLER_MODE is 'both': expected one of payload, envelope"),
    ({"ONCUE_SOCKET_CHMOD": "rw"}, "ONCUE_SOCKET_CHMOD is 'rw': expected octal digits such as 0o660"),
    ({"ASYA_CHUNK_SIZE": "0"}, "ASYA_CHUNK_SIZE is '0': expected a whole number from 1 to 1073741824"),
    ({"ASYA_ENABLE_VALIDATION": "maybe"}, "ASYA_ENABLE_VALIDATION is 'maybe': expected true or false"),
    ({"ASYA_LOG_LEVEL": "loud"}, "ASYA_LOG_LEVEL is 'loud': expected one of debug, info, warn, warning, error, critical"),
    ({"ASYA_RUNTIME_TIMEOUT": "soon"}, "ASYA_RUNTIME_TIMEOUT is 'soon': expected a duration such as 90, 30s, 5m or 1h30m"),
    ({"ASYA_SOCKET_NAME": "a/b"}, "ONCUE_SOCKET_NAME 'a/b': expected a file name without '/'"),
    ({"ONCUE_PROCESSES": "0"}, "ONCUE_PROCESSES is '0': expected a whole number from 1 to 256"),
    ({"ONCUE_CONCURRENCY": "many"}, "ONCUE_CONCURRENCY is 'many': expected a whole number from 1 to 10000"),
    ({"ONCUE_MEMORY_LIMIT": "0"}, "ONCUE_MEMORY_LIMIT is '0': expected a size such as 500M, 512Mi or 2Gi"),
    ({"ONCUE_FRAME_LIMIT": "4Gi"}, "ONCUE_FRAME_LIMIT is '4Gi': expected a size under 4Gi"),
    ({"ONCUE_CONCURENCY": "2"}, "ONCUE_CONCURENCY is no setting, did you mean ONCUE_CONCURRENCY?"),
    ({"ASYA_HANDLER": "a.b"}, "ONCUE_HANDLER is 'handlers.echo' but ASYA_HANDLER is 'a.b': set one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "line"), FAULTS)
def test_a_setting_that_is_wrong_is_one_clear_line(settings: dict[str, str], line: str, tmp_path: Path) -> None:
    ended = run(OLDEST, tmp_path, "handlers.echo", **settings)
    assert ended.returncode == 1
    assert ended.stderr == f"oncue runtime: {line}\n"
    assert not list(tmp_path.iterdir())


def test_all_wrong_settings_are_told_at_once(python: Path, tmp_path: Path) -> None:
    ended = run(python, tmp_path, None, ONCUE_PROCESSES="x", ONCUE_FRAME_LIMIT="y")
    assert [line.split()[2] for line in ended.stderr.splitlines()] == [
        "ONCUE_PROCESSES",
        "ONCUE_FRAME_LIMIT",
        "ONCUE_HANDLER",
    ]


async def test_asyas_names_work_and_so_does_the_same_value_twice(python: Path) -> None:
    settings = {
        "ASYA_HANDLER": "handlers.echo", "ASYA_HANDLER_MODE": "PAYLOAD", "ASYA_SOCKET_CHMOD": "600", "ASYA_CHUNK_SIZE": "7",
        "ASYA_LOG_LEVEL": "Warn", "ONCUE_LOG_LEVEL": "", "ASYA_RUNTIME_TIMEOUT": "1h30m", "ONCUE_URL": "memory:",
    }  # fmt: skip
    settings["ASYA_LOG_LEVEL"] = "info"
    async with Beside(python, "handlers.echo", **settings) as beside:
        assert stat.S_IMODE(beside.socket.stat().st_mode) == 0o600
        assert (await beside.send("x" * 1000))[0]["payload"] == "x" * 1000
        async with await beside.connect() as client:
            assert client.hello.timeout == 5400.0


async def test_the_socket_is_open_to_other_users_as_asyas_is() -> None:
    async with Beside(NEWEST, "handlers.echo") as beside:
        assert stat.S_IMODE(beside.socket.stat().st_mode) == 0o666


# The socket's path


def one_line(python: Path, folder: Path, **settings: str) -> str:
    ended = run(python, folder, "handlers.echo", **settings)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    return line


def test_a_path_that_is_too_long_is_one_clear_line(python: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    assert "the socket's path is too long (" in one_line(python, folder)
    assert not folder.exists()


def test_a_path_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "asya-runtime.sock"
    place.mkdir()
    assert one_line(OLDEST, tmp_path) == f"oncue runtime: cannot listen at {place}: there is a folder"
    place.rmdir()
    place.write_text("precious")
    assert one_line(OLDEST, tmp_path) == f"oncue runtime: cannot listen at {place}: there is a file that is no socket"
    assert place.read_text() == "precious"
    place.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place))
        other.listen()
        assert one_line(OLDEST, tmp_path) == f"oncue runtime: cannot listen at {place}: another process does"
        assert place.exists()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot listen at" in one_line(OLDEST, tmp_path / "file" / "below")


def test_a_folder_without_permission_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ended = run(OLDEST, tmp_path if os.geteuid() else Path("/proc/1"), "handlers.echo")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("oncue runtime: cannot listen at ")
    assert "Traceback" not in ended.stderr


async def test_a_socket_that_nobody_listens_on_is_replaced(python: Path) -> None:
    beside = Beside(python, "handlers.echo")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(beside.socket))
    async with beside:
        assert (await beside.send(1))[0]["payload"] == 1


async def test_a_handler_that_cannot_be_loaded_again_is_told_and_tried_again(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    async with Beside(NEWEST, "fragile.work", FRAGILE=str(broken)) as beside:
        beside.troubled = True
        assert (await beside.fault("break"))[0] == "exit_error"
        await beside.said("CRITICAL - Cannot load handler 'fragile.work': OSError: the model is gone")
        assert announced(beside.folder) is None
        told = json.loads((beside.folder / "runtime-error").read_text())
        assert told["error"] == "load_error"
        broken.unlink()
        assert (await beside.send("works"))[0]["payload"] == "works"
        assert announced(beside.folder) is not None
