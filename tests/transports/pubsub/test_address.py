"""What URLs mean, and what is refused in them."""

from __future__ import annotations

import pytest

from oncue.core.errors import InvalidValueError
from oncue.transports.pubsub.address import EMULATOR, Address, parse


@pytest.fixture(autouse=True)
def no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EMULATOR, raising=False)


def test_all_settings_are_read() -> None:
    found = parse(
        "pubsub://my-project?endpoint=europe-west1-pubsub.googleapis.com:443&credentials=/run/key.json&wait=20&timeout=3"
        "&attempts=50&ca=/etc/ca.pem&depth=approximate&monitoring=https://monitoring.googleapis.com/"
    )
    assert found == Address(
        project="my-project",
        endpoint="europe-west1-pubsub.googleapis.com:443",
        credentials="/run/key.json",
        wait=20.0,
        timeout=3.0,
        attempts=50,
        ca="/etc/ca.pem",
        depth="approximate",
        monitoring="https://monitoring.googleapis.com",
    )
    assert found.counts
    assert not parse("pubsub://my-project?emulator=localhost:1&depth=approximate").counts


def test_a_project_is_enough() -> None:
    assert parse("pubsub://my-project") == parse("pubsub://my-project/") == Address(project="my-project")
    assert parse("pubsub://example.com:my-project").project == "example.com:my-project"


def test_the_emulator_is_found_by_googles_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATOR, "localhost:8085")
    assert parse("pubsub://my-project").emulator == "localhost:8085"
    assert parse("pubsub://my-project?emulator=[::1]:9").emulator == "[::1]:9"
    assert parse("pubsub://my-project?endpoint=pubsub.googleapis.com:443").emulator is None
    monkeypatch.setenv(EMULATOR, "nonsense")
    with pytest.raises(InvalidValueError, match=EMULATOR):
        parse("pubsub://my-project")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("pubsub://", "the id of a project"),
        ("pubsub:///topic", "the id of a project"),
        ("pubsub://My_Project", "the id of a project"),
        ("pubsub://user:hunter2@my-project", "the id of a project"),
        ("pubsub://my-project/topic", "nothing between"),
        ("pubsub://my-project?emulator=localhost", "a host and a port"),
        ("pubsub://my-project?emulator=localhost:99999", "a host and a port"),
        ("pubsub://my-project?emulator=localhost:1&credentials=x", "needs no credentials"),
        ("pubsub://my-project?attempts=4", "from 5 to 100"),
        ("pubsub://my-project?depth=exact", "'none' or 'approximate'"),
        ("pubsub://my-project?monitoring=localhost", "expected a URL"),
        ("pubsub://my-project?wait=0", "more than 0"),
        ("pubsub://my-project?region=eu", "unknown parameter 'region'"),
    ],
)
def test_what_is_wrong_is_said(url: str, says: str) -> None:
    with pytest.raises(InvalidValueError, match=says) as caught:
        parse(url)
    assert "hunter2" not in str(caught.value)


def test_an_address_shows_no_secret() -> None:
    assert repr(parse("pubsub://my-project?emulator=localhost:1").shown) == "'pubsub://my-project at localhost:1'"
