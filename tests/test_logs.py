"""What log lines look like, and what never gets into them."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from oncue.core.settings import Settings
from oncue.logs import configure_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(text: str, stream: io.StringIO | None = None, fields: dict[str, Any] | None = None, **settings: Any) -> str:
    stream = stream or io.StringIO()
    configure_logs(Settings(**settings), stream)
    logging.getLogger("oncue.test").info(text, extra={"fields": fields or {}})
    return stream.getvalue()


def test_outside_of_a_terminal_each_line_is_a_json_object() -> None:
    line = logged("message.done", fields={"queue": "q", "seconds": 0.25, "error": None, "attempt": 1})
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "info",
        "logger": "oncue.test",
        "message": "message.done",
        "queue": "q",
        "seconds": 0.25,
        "error": None,
        "attempt": 1,
    }


def test_on_a_terminal_lines_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert '\x1b[32mINFO   \x1b[0m message.done  \x1b[2mqueue=q why="a b"\x1b[0m\n' in logged(
        "message.done", Terminal(), {"queue": "q", "why": "a b"}
    )
    monkeypatch.setenv("NO_COLOR", "1")
    assert logged("message.done", Terminal(), {"queue": "q"})[12:] == " INFO    message.done  queue=q\n"


def test_no_payload_is_written_unless_asked() -> None:
    fields = {"payload": b'{"card": 4711}', "result": {"card": 4711}}
    assert "4711" not in logged("got", fields=fields)
    assert json.loads(logged("got", fields=fields))["payload"] == "<14 bytes>"
    assert "4711" in logged("got", fields=fields, log_payloads=True)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_written(form: str) -> None:
    fields = {"error": "cannot reach redis://u:hunter2@h", "api_key": "hunter2", "headers": {"password": "hunter2"}}
    assert "hunter2" not in logged("using amqp://u:hunter2@h", fields=fields, log_format=form)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_text_with_line_breaks_or_control_codes_stays_one_harmless_line(form: str) -> None:
    line = logged("a\nb\x1b[2J\x85", fields={"x": "c\r\nd\u2028e", "y\n\x1b": 1}, log_format=form)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


@pytest.mark.parametrize("form", ["text", "json"])
def test_values_that_are_hard_to_write_are_written_all_the_same(form: str) -> None:
    line = logged("odd \udc80", fields={"x": float("nan"), "y": object, "z": b"\xff"}, log_format=form)
    assert "nan" in line


def test_an_error_comes_with_its_traceback_and_the_text_form_keeps_its_lines() -> None:
    for form in ("json", "text"):
        stream = io.StringIO()
        configure_logs(Settings(log_format=form), stream)
        try:
            raise ValueError("bad redis://u:hunter2@h")
        except ValueError:
            logging.getLogger("oncue.test").exception("failed")
        assert "ValueError: bad redis://u:***@h" in stream.getvalue()
        assert len(stream.getvalue().splitlines()) == (1 if form == "json" else 5)


def test_configuring_again_replaces_the_settings_and_the_level_counts() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logs(Settings(), first)
    assert logged("quiet", second, log_level="warning") == ""
    assert first.getvalue() == ""


def test_a_log_that_cannot_be_written_does_not_stop_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    configure_logs(Settings(), stream)
    stream.close()
    logging.getLogger("oncue.test").info("lost")
    assert capsys.readouterr().err == ""
    assert not sys.is_finalizing()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_very_long_text_is_written_without_holding_up_the_work(form: str) -> None:
    started = time.process_time()
    assert len(logged("a" * 200_000, fields={"error": "b:" + "c" * 200_000}, log_format=form)) > 400_000
    assert time.process_time() - started < 5.0
