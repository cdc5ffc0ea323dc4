"""Opening a transport by its URL: ours, those of other packages, and those that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oncue.core.errors import ConfigError, InvalidValueError, LoadError, MissingExtraError
from oncue.transports import open_transport, schemes

SECRET = "hunter2"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which an installed package named `foreign` registers schemes."""
    info = tmp_path / "foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[oncue.transports]\n"
        "good = foreign_transport:open\n"
        "memory = foreign_transport:open\n"
        "absent = foreign_transport:missing\n"
        "gone = foreign_nowhere:open\n"
        "needy = foreign_needy:open\n"
        "faulty = foreign_faulty:open\n"
    )
    (tmp_path / "foreign_transport.py").write_text(
        "from oncue.transports.memory import open_memory\n"
        "async def open(url):\n    transport = await open_memory('memory:')\n    transport.url = url\n    return transport\n"
    )
    (tmp_path / "foreign_needy.py").write_text("import client_that_is_not_installed\n")
    (tmp_path / "foreign_faulty.py").write_text("from oncue import no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("foreign_transport", "foreign_needy", "foreign_faulty"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("url", ["memory:", "MEMORY:", "Memory://name"])
async def test_schemes_are_of_any_case(url: str) -> None:
    transport = await open_transport(url)
    await transport.close()


@pytest.mark.parametrize(
    "url", ["", "jobs.db", "/var/jobs.db", "://x", "1a:x", f"user:{SECRET}@host", f"//u:{SECRET}@h"]
)
async def test_a_text_that_is_no_url_is_answered_with_an_example(url: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        await open_transport(url)
    assert SECRET not in str(caught.value)
    assert "sqlite" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("sqllite:///jobs.db", "sqlite"),
        ("memroy:", "memory"),
        (f"redsi://u:{SECRET}@host", "redis"),
        ("ampq://h", "amqp"),
    ],
)
async def test_a_misspelt_scheme_is_answered_with_the_one_that_was_meant(url: str, meant: str) -> None:
    with pytest.raises(InvalidValueError, match=f"did you mean '{meant}'") as caught:
        await open_transport(url)
    assert SECRET not in str(caught.value)


async def test_an_unknown_scheme_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidValueError, match="unknown scheme; known schemes: .*memory, .*sqlite") as caught:
        await open_transport(f"zzzzzz://u:{SECRET}@host")
    assert SECRET not in str(caught.value)


async def test_another_package_brings_its_scheme(package: Path) -> None:
    assert {"good", "memory", "sqlite"} <= set(schemes())
    assert schemes() == sorted(set(schemes()))
    transport = await open_transport("good://anything")
    assert transport.url == "good://anything"
    await transport.close()


async def test_another_package_cannot_take_the_place_of_ours(package: Path) -> None:
    transport = await open_transport("memory:")
    assert not hasattr(transport, "url")
    await transport.close()


async def test_a_transport_whose_client_is_missing_names_it_and_its_package(package: Path) -> None:
    with pytest.raises(MissingExtraError, match="client_that_is_not_installed.*foreign") as caught:
        await open_transport(f"needy://u:{SECRET}@host")
    assert (caught.value.scheme, caught.value.extra) == ("needy", "foreign")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["absent", "gone", "faulty"])
async def test_a_transport_that_cannot_be_loaded_names_what_and_why(package: Path, scheme: str) -> None:
    with pytest.raises(
        LoadError, match=rf"transport {scheme}: foreign_\w+:\w+ cannot be loaded: .*(foreign|oncue)"
    ) as caught:
        await open_transport(f"{scheme}://u:{SECRET}@host")
    assert SECRET not in str(caught.value)


def test_a_missing_extra_is_answered_with_the_line_that_installs_it() -> None:
    error = MissingExtraError("redis", "redis")
    assert str(error) == "redis: needs an extra: pip install 'oncue[redis]'"
    assert isinstance(error, ConfigError)


def test_no_transport_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, oncue.transports; print([n for n in sys.modules if n.startswith('oncue.transports.')], 'sqlite3' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "['oncue.transports.base'] False"
