"""What sidecars say in their log becomes a part of the supervisor's, once and whole."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from oncue.core.settings import Settings
from oncue.local.lines import Prefixed, Records
from oncue.logs import configure_logs

SAID = (
    '{"time": "2026-01-02T03:04:05.678Z", "level": "warning", "logger": "oncue.sidecar", "message": "runtime.lost", '
    '"queue": "asya-a", "after": 1.5, "actor": "other"}'
)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log of this process, from level info on, as machines read it."""
    root = logging.getLogger()
    level, stream = root.level, io.StringIO()
    configure_logs(Settings(log_format="json", log_level="info"), stream)
    yield stream
    root.removeHandler(root.handlers[-1])
    root.setLevel(level)


def test_a_record_of_a_sidecar_stays_one_and_has_the_name_of_its_actor(log: io.StringIO) -> None:
    Records().of_sidecar("a", 2)(SAID)
    assert json.loads(log.getvalue()) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "warning",
        "logger": "oncue.sidecar",
        "message": "runtime.lost",
        "queue": "asya-a",
        "after": 1.5,
        "actor": "a",
        "replica": 2,
    }


def test_its_traceback_comes_along(log: io.StringIO) -> None:
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no'
    Records().of_sidecar("a", 1)(json.dumps({**json.loads(SAID), "traceback": trace}))
    assert json.loads(log.getvalue())["traceback"] == trace


def test_the_level_of_the_log_counts_for_sidecars_too(log: io.StringIO) -> None:
    Records().of_sidecar("a", 1)(SAID.replace("warning", "debug"))
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    "line",
    [
        "oncue: the runtime could not load its handler",
        "{",
        "[]",
        "{}",
        '{"time": "now", "level": "info", "logger": "x", "message": "m"}',
        SAID.replace('"warning"', '"loud"'),
        SAID.replace('"runtime.lost"', "7"),
        SAID.replace('"oncue.sidecar"', '"root\\u0000"') + " x",
    ],
)
def test_any_other_line_of_a_sidecar_is_a_text(log: io.StringIO, line: str) -> None:
    Records().of_sidecar("a", 1)(line)
    record = json.loads(log.getvalue())
    assert (record["message"], record["logger"], record["actor"], record["replica"]) == (line, "oncue.local", "a", 1)


def test_what_users_print_is_never_taken_for_a_record(log: io.StringIO) -> None:
    Records().of("a", 1)(SAID)
    assert json.loads(log.getvalue())["message"] == SAID


def test_for_people_a_record_of_a_sidecar_is_a_line_of_text(
    log: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Prefixed(["a"], coloured=False).of_sidecar("a", 1)
    said(SAID.replace("asya-a", "a\\u001b[31mb"))
    said(SAID.replace("warning", "debug"))
    said(json.dumps({**json.loads(SAID), "message": "m", "traceback": "one\ntwo"}))
    said("no record")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" | ")[0] for line in lines] == ["a/1"] * 5
    assert lines[0].endswith(" WARNING runtime.lost  queue=a\\x1b[31mb after=1.5 actor=other")
    assert lines[1].endswith(" WARNING m  queue=asya-a after=1.5 actor=other")
    assert [line.partition(" | ")[2] for line in lines[2:]] == ["one", "two", "no record"]
